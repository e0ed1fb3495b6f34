"""Settles rows: measures the scan's best group, and decides by the bound whether that suffices."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.bound import lowest_score
from vqvae_fast.backends.triton.measure import (
    exact_distance,
    scaled_distances,
    scores_of_codes,
    widened,
)
from vqvae_fast.backends.triton.rows import aligned, row_offsets
from vqvae_fast.backends.triton.scan import UNSEEN
from vqvae_fast.backends.triton.write import NO_CODE, list_rows, write_quantized


@triton.jit
def best_of_parts(
    scores, groups, rest, parts, slab_rows, is_row,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The best of the parts' best groups, its score, and a score that no other exceeds, [R] each.

    scores, groups, rest: pointers [R] to the first part's results for each row.
    """
    shape: tl.constexpr = (is_row.shape[0], PARTS)
    best = tl.full(shape, UNSEEN, tl.float32)
    best_group = tl.full(shape, 0, tl.int32)
    others = tl.full(shape, UNSEEN, tl.float32)
    lanes = tl.arange(0, PARTS)
    for first in range(0, parts, PARTS):
        part = first + lanes
        mask = is_row[:, None] & (part < parts)[None, :]
        at = (part.to(tl.int64) * slab_rows)[None, :]
        score = tl.load(scores[:, None] + at, mask, other=UNSEEN)
        group = tl.load(groups[:, None] + at, mask, other=0)
        others = tl.maximum(others, tl.load(rest[:, None] + at, mask, other=UNSEEN))
        others = tl.maximum(others, tl.minimum(score, best))
        best_group = tl.where(score > best, group, best_group)
        best = tl.maximum(best, score)
    top = tl.max(best, axis=1)
    is_top = lanes[None, :] == tl.argmax(best, axis=1)[:, None]
    others = tl.maximum(others, tl.where(is_top, UNSEEN, best))
    return top, tl.sum(tl.where(is_top, best_group, 0), axis=1), tl.max(others, axis=1)


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "first_row", "slab_rows", "book_stride", "num_codes",
        "q_inner", "q_outer_stride", "q_head", "columns", "parts",
    ],
    do_not_specialize_on_alignment=[
        "z_inner_stride", "z_stride", "code_element", "q_inner_stride", "q_stride",
    ],
)  # fmt: skip
def settle_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    first_row, slab_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    centre, scale_of_book, base_of_book, max_norm, max_rounding, has_outliers, columns,
    scores, groups, rest, rounding, row_norm, parts,
    in_doubt, num_in_doubt, listed, num_listed, bounds,
    ALIGNED: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP_CHUNK: tl.constexpr,
    START_COLUMNS: tl.constexpr,
    EPSILON: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    NORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """Measures each row's best group, writes what that settles, and lists the other rows.

    in_doubt, num_in_doubt: [H, slab] and [H]. The rows with a bound, counted from the slab's first:
        another group reaches it, or float32 cannot distinguish two codes.
    listed: [H, N]. The rows without a bound are added at the back.
    num_listed: [2, H]. The second part counts the rows without a bound.
    bounds: [2, H, N]. For each row with a bound: the least score of the answer, and the scaled
        distance that it cannot exceed.
    """
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1).to(tl.int64)
    in_slab = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row = first_row + in_slab
    is_row = (row < num_rows) & (in_slab < slab_rows)
    z_rows = z + head * aligned(z_head, ALIGNED)
    z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
    book = codebook + head * aligned(book_stride, ALIGNED)
    scale = tl.load(scale_of_book + head)

    entry = head * parts * slab_rows + in_slab
    top, group, others = best_of_parts(
        scores + entry, groups + entry, rest + entry, parts, slab_rows, is_row, PARTS
    )
    row_rounding = tl.load(rounding + head * slab_rows + in_slab, is_row, other=0.0)
    # It is infinite for a row that does not fit the matrix unit's type.
    wanted = is_row & (row_rounding < float("inf")) & (top > UNSEEN)
    first_code = (group // SLOTS).to(tl.int64) * (GROUP * SLOTS) + group % SLOTS
    code = first_code[:, None] + (tl.arange(0, GROUP) * SLOTS)[None, :]
    is_code = wanted[:, None] & (code < num_codes)
    near = scaled_distances(
        z_rows, z_stride, book + code * code_stride, code_element, scale, wanted, is_code, dim,
        GROUP_CHUNK,
    )  # fmt: skip
    # NaN and infinity, of codes that must not be chosen, compare false.
    is_code &= near < float("inf")
    least = tl.min(tl.where(is_code, near, float("inf")), axis=1)
    limit = widened(least, dim)
    is_code &= near <= limit[:, None]
    is_alone = tl.sum(is_code.to(tl.int32), axis=1) == 1
    # Any code of the group gives a bound, and the best one gives a close bound. Far from all codes,
    # as beside a codebook that was just initialised, float32 can distinguish their scores, but not
    # their distances.
    middle = centre + head * columns
    nearness = tl.where(is_code, -near, UNSEEN)
    if tl.max((wanted & (is_alone == 0)).to(tl.int32), axis=0) > 0:
        score = scores_of_codes(
            z_rows, z_stride, book + code * code_stride, code_element, middle, scale, wanted,
            is_code, dim, GROUP_CHUNK // 2,
        )  # fmt: skip
        nearness = tl.where(is_code, score, UNSEEN)
    best = tl.max(nearness, axis=1)
    is_best = is_code & (nearness == best[:, None])
    nearest = tl.min(tl.where(is_best, code, NO_CODE), axis=1)
    nearest_ptrs = book + tl.where(nearest != NO_CODE, nearest, 0) * code_stride
    distance, score = exact_distance(
        z_rows, z_stride, nearest_ptrs, code_element, middle, scale,
        nearest != NO_CODE, dim, CHUNK,
    )  # fmt: skip
    lowest = lowest_score(
        score, distance, scale,
        tl.load(base_of_book + head),
        tl.load(max_norm + head).to(tl.float32, bitcast=True),
        tl.load(max_rounding + head).to(tl.float32, bitcast=True),
        tl.load(has_outliers + head),
        row_rounding,
        tl.load(row_norm + head * slab_rows + in_slab, is_row, other=0.0),
        dim, START_COLUMNS, EPSILON, SUBNORMAL, NORMAL, LARGEST,
    )  # fmt: skip
    bounded = (nearest != NO_CODE) & (lowest > UNSEEN)
    settled = bounded & is_alone & (others < lowest)
    out = head * num_rows + row
    # Rows in doubt get their nearest code so far, which `recheck` or `rescan` replaces.
    tl.store(indices + out, nearest, bounded)
    tl.store(distances + out, distance.to(distances.dtype.element_ty), bounded)
    if QUANTIZE:
        q_rows = quantized + head * aligned(q_head, ALIGNED)
        q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
        write_quantized(q_rows, q_stride, nearest_ptrs, code_element, bounded, dim, CHUNK)
    doubtful = bounded & (settled == 0)
    tl.store(bounds + out, lowest, doubtful)
    tl.store(bounds + heads * num_rows + out, limit, doubtful)
    list_rows(in_doubt + head * slab_rows, 1, num_in_doubt + head, in_slab, doubtful)
    last = listed + head * num_rows + num_rows - 1
    list_rows(last, -1, num_listed + heads + head, row, is_row & (bounded == 0))
