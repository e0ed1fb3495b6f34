"""Settling rows: the scan's best groups are measured, and the bound says whether that is all."""

import triton
import triton.language as tl

from vqvae_fast.triton.measure import exact_distance, scaled_distance
from vqvae_fast.triton.rows import aligned, row_offsets
from vqvae_fast.triton.scan import UNSEEN
from vqvae_fast.triton.write import NO_CODE, is_nearer, list_rows, write_quantized


@triton.jit
def lowest_score(
    distance, to_centre, scale, max_norm, max_rounding, has_outliers, rounding, row_norm, dim,
    EPSILON: tl.constexpr, SUBNORMAL: tl.constexpr, NORMAL: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """What the packed score of a code must reach to be as near as `distance`, float32 [R].

    All lengths but `distance` and `to_centre` (float64 squares, unscaled) are scaled.
    rounding: |Z - Z'|; row_norm: |Z'|; docs/exactness.md has the derivation, and the names.
    """
    scale = scale.to(tl.float64)
    dims = dim.to(tl.float64)
    reach = tl.sqrt(to_centre) * scale
    triangle = reach + tl.sqrt(distance) * scale
    radius = tl.minimum(max_norm.to(tl.float64), triangle * (1 + 1e-6))
    code_rounding = max_rounding.to(tl.float64) + 1.2e-7 * radius
    code_rounding = tl.minimum(code_rounding, EPSILON * radius + SUBNORMAL * tl.sqrt(dims))
    z_rounding = rounding.to(tl.float64) + 1.2e-7 * reach + 1e-17
    z_norm = row_norm.to(tl.float64)
    # The matrix unit aligns a step's products to the largest exponent that they may have, and there
    # it takes a subnormal number for the smallest normal one.
    aligned_to = (z_norm + NORMAL) * (radius + code_rounding + NORMAL) + 0.5 * radius * radius
    addition = (dims + 16) * 2.4e-7 * aligned_to
    error = z_rounding * radius + z_norm * code_rounding + addition
    square = (to_centre + distance) * scale * scale
    lowest = 0.5 * (to_centre - distance) * scale * scale - 1.02 * error
    lowest -= (dims + 16) * 2.3e-16 * square + 1e-30
    # The number of the tile in the low bits, and the rounding of this result to float32.
    lowest -= 3.1e-5 * tl.abs(lowest)
    # Codes too large for packing were left out: right where the triangle keeps them out anyway.
    lowest = tl.where((has_outliers > 0) & (triangle >= 0.99 * LARGEST), UNSEEN, lowest)
    return tl.maximum(lowest, UNSEEN).to(tl.float32)


@triton.jit
def measure_group(
    z_rows, z_stride, book, code_stride, code_element, num_codes, dim, centre, scale, group, wanted,
    nearest, nearest_code, to_centre,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Measures one group for each wanted row; returns the nearest code so far and |z - centre|^2.

    All of the group in float32, whose error is relative; what that cannot tell apart in float64.
    """
    members = tl.arange(0, GROUP)
    first_code = (group // SLOTS).to(tl.int64) * (GROUP * SLOTS) + group % SLOTS
    near = tl.full((z_rows.shape[0], GROUP), float("inf"), tl.float32)
    for i in range(GROUP):
        code = first_code + i * SLOTS
        is_code = wanted & (code < num_codes)
        distance = scaled_distance(
            z_rows, z_stride, book + code * code_stride, code_element, scale, is_code, dim, CHUNK
        )
        # NaN and infinity, of codes that must not be chosen, compare false and stay inf.
        is_near = (members == i)[None, :] & (is_code & (distance < float("inf")))[:, None]
        near = tl.where(is_near, distance[:, None], near)
    limit = tl.min(near, axis=1)
    limit = limit * (1 + (dim + 16) * 2.4e-7) + dim * 1e-37
    left = ((near <= limit[:, None]) & (near < float("inf"))).to(tl.int32)
    while tl.max(tl.max(left, axis=1), axis=0) > 0:
        member = tl.argmax(left, axis=1)
        is_code = tl.max(left, axis=1) > 0
        code = first_code + member * SLOTS
        distance, reach = exact_distance(
            z_rows, z_stride, book + code * code_stride, code_element, centre, is_code, dim, CHUNK
        )
        nearer = is_code & is_nearer(distance, code, nearest, nearest_code)
        nearest = tl.where(nearer, distance, nearest)
        nearest_code = tl.where(nearer, code, nearest_code)
        to_centre = tl.where(is_code, reach, to_centre)
        left = tl.where(members[None, :] == member[:, None], 0, left)
    return nearest, nearest_code, to_centre


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
    centre, scale_of_book, max_norm, max_rounding, has_outliers, columns,
    scores, groups, rest, rounding, row_norm, parts,
    listed, num_listed,
    ALIGNED: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
    EPSILON: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    NORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """Writes the results of the rows that the bound settles, and lists the others."""
    head = tl.program_id(1).to(tl.int64)
    in_slab = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row = first_row + in_slab
    is_row = (row < num_rows) & (in_slab < slab_rows)
    z_rows = z + head * aligned(z_head, ALIGNED)
    z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
    book = codebook + head * aligned(book_stride, ALIGNED)
    centre += head * columns
    scale = tl.load(scale_of_book + head)
    longest = tl.load(max_norm + head).to(tl.float32, bitcast=True)
    worst = tl.load(max_rounding + head).to(tl.float32, bitcast=True)
    outliers = tl.load(has_outliers + head)
    z_rounding = tl.load(rounding + head * slab_rows + in_slab, is_row, other=0.0)
    z_norm = tl.load(row_norm + head * slab_rows + in_slab, is_row, other=0.0)
    entry = head * parts * slab_rows + in_slab
    entries = tl.num_programs(1).to(tl.int64) * parts * slab_rows

    # The best group of all parts, first: its distance gives the bound.
    top = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
    top_group = tl.full((BLOCK_ROWS,), -1, tl.int32)
    others = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
    for part in range(parts):
        score = tl.load(scores + entry + part * slab_rows, is_row, other=UNSEEN)
        group = tl.load(groups + entry + part * slab_rows, is_row, other=0)
        top_group = tl.where(score > top, group, top_group)
        top = tl.maximum(top, score)
        others = tl.maximum(others, tl.load(rest + entry + part * slab_rows, is_row, other=UNSEEN))

    nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
    nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
    to_centre = tl.zeros((BLOCK_ROWS,), tl.float64)
    lowest = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
    # Rounds 0: the best group; then the three of each part, as far as the bound leaves them.
    for i in range(1 + 3 * parts):
        group = top_group
        wanted = is_row & (top_group >= 0)
        if i > 0:
            place = entry + ((i - 1) % 3) * entries + ((i - 1) // 3) * slab_rows
            score = tl.load(scores + place, is_row, other=UNSEEN)
            group = tl.load(groups + place, is_row, other=0)
            wanted = is_row & (score >= lowest) & (score > UNSEEN) & (group != top_group)
        wanted &= others < float("inf")
        if tl.max(wanted.to(tl.int32), axis=0) > 0:
            nearest, nearest_code, to_centre = measure_group(
                z_rows, z_stride, book, code_stride, code_element, num_codes, dim, centre, scale,
                group, wanted, nearest, nearest_code, to_centre, GROUP, SLOTS, CHUNK,
            )  # fmt: skip
            bound = lowest_score(
                nearest, to_centre, scale, longest, worst, outliers, z_rounding, z_norm, dim,
                EPSILON, SUBNORMAL, NORMAL, LARGEST,
            )  # fmt: skip
            lowest = tl.where(nearest_code != NO_CODE, bound, UNSEEN)

    settled = is_row & (others < lowest) & (nearest_code != NO_CODE)
    out = head * num_rows + row
    tl.store(indices + out, nearest_code, settled)
    tl.store(distances + out, nearest.to(distances.dtype.element_ty), settled)
    if QUANTIZE:
        q_rows = quantized + head * aligned(q_head, ALIGNED)
        q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
        code = book + nearest_code * code_stride
        write_quantized(q_rows, q_stride, code, code_element, settled, dim, CHUNK)
    doubtful = is_row & (settled == 0)
    list_rows(listed + head * num_rows, num_listed + head, row, doubtful)
