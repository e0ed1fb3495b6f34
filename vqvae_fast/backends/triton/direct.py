"""The search in one launch, for little work: each program packs the codes that it compares.

For a few rows, one program does the work of `prepare`, `scan`, `settle` and `exact` by itself.
Packing the codes again for every block of rows costs more arithmetic than multiplying them, but it
saves launches. The bound is that of the other kernels (docs/exactness.md).
"""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.bound import lowest_score
from vqvae_fast.backends.triton.exact import load_elements
from vqvae_fast.backends.triton.prepare import (
    NEVER_CHOSEN,
    ROWS_BELOW,
    centre_of,
    sampled_rows,
    scale_and_base,
)
from vqvae_fast.backends.triton.rows import aligned, row_offsets
from vqvae_fast.backends.triton.scan import UNSEEN, round_rows
from vqvae_fast.backends.triton.sharing import share_result
from vqvae_fast.backends.triton.write import NO_CODE, is_nearer, take_nearer, write_quantized

# The low bits of a score make room for the number of its tile, counted from the part's first.
DIRECT_TILES = tl.constexpr(1 << 8)


@triton.jit
def measured(z, z_stride, code, code_element, wanted, dim, CHUNK: tl.constexpr):
    """float64 |z - e|^2 of each row [R]. z, code: pointers [R]."""
    total = tl.zeros(z.shape, tl.float64)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        difference = load_elements(z, z_stride, d, wanted, dim)
        difference -= load_elements(code, code_element, d, wanted, dim)
        total += tl.sum(difference * difference, axis=1)
    return total


@triton.jit
def search_all(
    z, z_stride, book, code_stride, code_element, first, last, wanted, dim,
    BLOCK_CODES: tl.constexpr,
):  # fmt: skip
    """The nearest of codes first .. last - 1 to each row [R], every one in float64; or NO_CODE."""
    shape: tl.constexpr = (z.shape[0], BLOCK_CODES)
    lane_distance = tl.full(shape, float("inf"), tl.float64)
    lane_code = tl.full(shape, NO_CODE, tl.int64)
    for start in range(first, last, BLOCK_CODES):
        code = start + tl.arange(0, BLOCK_CODES)
        is_code = code < last
        usable = is_code
        distance = tl.zeros(shape, tl.float64)
        z_element, element = z, book + code * code_stride
        for _ in range(dim):
            a = tl.load(z_element, wanted, other=0.0).to(tl.float64)
            e = tl.load(element, is_code, other=0.0).to(tl.float64)
            usable &= tl.abs(e) < float("inf")
            difference = a[:, None] - e[None, :]
            distance += difference * difference
            z_element += z_stride
            element += code_element
        lane_distance, lane_code = take_nearer(
            distance, code[None, :], usable[None, :], lane_distance, lane_code
        )
    nearest = tl.min(lane_distance, axis=1)
    return tl.min(tl.where(lane_distance == nearest[:, None], lane_code, NO_CODE), axis=1)


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "book_stride", "num_codes",
        "q_inner", "q_outer_stride", "q_head", "part_codes",
    ],
    do_not_specialize_on_alignment=[
        "z_inner_stride", "z_stride", "code_element", "q_inner_stride", "q_stride",
    ],
)  # fmt: skip
def direct_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    part_codes, arrivals, distances_of_parts, codes_of_parts,
    ALIGNED: tl.constexpr,
    BOOK_ALIGNED: tl.constexpr,
    QUANTIZE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    EPSILON: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    NORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """A block of rows against a part of the codes: `part_codes`, of DIRECT_TILES tiles at most.

    A lane is a code's place in every tile. For each row and lane the loop keeps the best two codes
    and the third's score. Those that the bound leaves are measured in float64, the best first. If
    it leaves a third, the row is measured against every code of the part.

    SHARED: there are several parts, and the last of them to finish merges. arrivals: [H, blocks]
        zeros; distances_of_parts, codes_of_parts: [H, blocks, parts, BLOCK_ROWS].
    """
    head = tl.program_id(2).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    first_row = z + head * aligned(z_head, ALIGNED)
    z_rows = first_row + row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
    book = codebook + head * aligned(book_stride, BOOK_ALIGNED)
    code_stride = aligned(code_stride, BOOK_ALIGNED)
    num_codes = num_codes.to(tl.int64)

    LONGEST: tl.constexpr = 0.995 * LARGEST
    column = tl.arange(0, BLOCK_DIM)  # behind dim rows, codes and their centre are 0
    is_column = (column < dim)[None, :]
    middle = centre_of(book, code_stride, code_element, num_codes, column, dim)
    samples = row_offsets(sampled_rows(num_rows), z_inner, z_outer_stride, z_inner_stride, ALIGNED)
    scale, _base = scale_and_base(
        book, code_stride, code_element, num_codes, first_row + samples, z_stride, dim, 1,
        BLOCK_DIM, ROWS_BELOW,
    )  # fmt: skip

    element = column.to(tl.int64)
    z_ptrs = z_rows[:, None] + (element * z_stride)[None, :]
    value = tl.load(z_ptrs, is_row[:, None] & is_column, other=0.0).to(tl.float32)
    is_nan = tl.max((value != value).to(tl.int32), axis=1) > 0
    to_centre = value.to(tl.float64) - middle.to(tl.float64)[None, :]
    to_centre = tl.sum(to_centre * to_centre, axis=1)
    # First scaled, which is exact: the difference of the largest numbers overflows.
    value = value * scale - (middle * scale)[None, :]
    packed_row, fits = round_rows(value, tl.float16)
    back = packed_row.to(tl.float32)
    rounding = tl.sqrt(tl.sum((value - back) * (value - back), axis=1))
    row_norm = tl.sqrt(tl.sum(back * back, axis=1))

    first_code = part.to(tl.int64) * part_codes
    last_code = tl.minimum(first_code + part_codes, num_codes)
    lane = tl.arange(0, BLOCK_CODES)
    best = tl.full((BLOCK_ROWS, BLOCK_CODES), UNSEEN, tl.float32)
    second = tl.full((BLOCK_ROWS, BLOCK_CODES), UNSEEN, tl.float32)
    third = tl.full((BLOCK_ROWS, BLOCK_CODES), UNSEEN, tl.float32)
    longest = tl.zeros((BLOCK_CODES,), tl.float32)
    outlier = tl.zeros((BLOCK_CODES,), tl.int32)
    tiles = tl.cdiv(last_code - first_code, BLOCK_CODES).to(tl.int32)
    for tile in tl.range(tiles, num_stages=NUM_STAGES):
        code = first_code + tile * BLOCK_CODES + lane
        is_code = code < last_code
        e_ptrs = book + (code * code_stride)[:, None] + (element * code_element)[None, :]
        e = tl.load(e_ptrs, is_code[:, None] & is_column, other=0.0).to(tl.float32)
        e = e * scale - (middle * scale)[None, :]
        norm = tl.sum(e * e, axis=1)
        # The length decides, which is less work than all elements; false for NaN and infinity, too.
        packable = is_code & (norm < LONGEST * LONGEST)
        outlier |= (is_code & (packable == 0)).to(tl.int32)
        longest = tl.maximum(longest, tl.where(packable, norm, 0.0))
        score = tl.broadcast_to((-0.5 * norm)[None, :], (BLOCK_ROWS, BLOCK_CODES))
        score = tl.dot(packed_row, tl.trans(e.to(tl.float16)), score)
        score = tl.where(packable[None, :], score, NEVER_CHOSEN)
        bits = (score.to(tl.int32, bitcast=True) & -DIRECT_TILES) | tile
        score = bits.to(tl.float32, bitcast=True)
        worse = tl.minimum(best, score)
        best = tl.maximum(best, score)
        third = tl.maximum(third, tl.minimum(second, worse))
        second = tl.maximum(second, worse)
    rest = tl.max(third, axis=1)
    max_norm = tl.sqrt(tl.max(longest, axis=0))
    has_outliers = tl.max(outlier, axis=0)

    # Visit the codes that the bound leaves, from the highest score down.
    nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
    nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
    lowest = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
    score = tl.max(best, axis=1)
    wanted = fits & is_row & (score > 0.5 * NEVER_CHOSEN)
    while tl.max(wanted.to(tl.int32), axis=0) > 0:
        chosen = tl.argmax(best, axis=1)
        its_tile = score.to(tl.int32, bitcast=True) & (DIRECT_TILES - 1)
        code = first_code + its_tile * BLOCK_CODES + chosen
        distance = measured(
            z_rows, z_stride, book + code * code_stride, code_element, wanted, dim, CHUNK
        )
        nearer = wanted & is_nearer(distance, code, nearest, nearest_code)
        nearest = tl.where(nearer, distance, nearest)
        nearest_code = tl.where(nearer, code, nearest_code)
        # Subtract the largest error of the float64 sums.
        nearest_score = 0.5 * (to_centre - nearest) - (dim + 16) * 2.3e-16 * to_centre
        nearest_score = (nearest_score * scale * scale).to(tl.float32)
        bound = lowest_score(
            nearest_score, nearest, scale, 0.0, max_norm, max_norm, has_outliers, rounding,
            row_norm, dim, 0, EPSILON, SUBNORMAL, NORMAL, LARGEST,
        )  # fmt: skip
        lowest = tl.where(nearest_code != NO_CODE, bound, UNSEEN)
        taken = lane[None, :] == chosen[:, None]
        best = tl.where(taken, second, best)
        second = tl.where(taken, UNSEEN, second)
        score = tl.max(best, axis=1)
        wanted &= (score >= lowest) & (score > 0.5 * NEVER_CHOSEN) & (rest < lowest)

    settled = fits & (rest < lowest) & (nearest_code != NO_CODE)
    unsettled = is_row & (settled == 0)
    if tl.max(unsettled.to(tl.int32), axis=0) > 0:
        code = search_all(
            z_rows, z_stride, book, code_stride, code_element, first_code, last_code, is_row, dim,
            BLOCK_CODES,
        )  # fmt: skip
        # Measure it as all others are: the copies of a code in other parts have the same distance.
        found = unsettled & (code != NO_CODE)
        distance = measured(
            z_rows, z_stride, book + tl.where(found, code, 0) * code_stride, code_element,
            found, dim, CHUNK,
        )  # fmt: skip
        nearest = tl.where(unsettled, tl.where(found, distance, float("inf")), nearest)
        nearest_code = tl.where(unsettled, code, nearest_code)

    finishes = parts > 0
    if SHARED:
        block = head * tl.num_programs(0) + tl.program_id(0)
        first_part = block * parts * BLOCK_ROWS
        nearest, nearest_code, finishes = share_result(
            nearest, nearest_code, distances_of_parts + first_part, codes_of_parts + first_part,
            arrivals + block, part, parts, BLOCK_ROWS,
        )  # fmt: skip
    if finishes:
        nowhere = is_row & (nearest_code == NO_CODE)
        if tl.max(nowhere.to(tl.int32), axis=0) > 0:
            first = tl.broadcast_to(book, (BLOCK_ROWS,))
            distance = measured(z_rows, z_stride, first, code_element, nowhere, dim, CHUNK)
            nearest = tl.where(nowhere, distance, nearest)
        nearest = tl.where(is_nan, float("nan"), nearest)
        nearest_code = tl.where(nowhere | is_nan, 0, nearest_code)
        out = head * num_rows + row
        tl.store(indices + out, nearest_code, is_row)
        tl.store(distances + out, nearest.to(distances.dtype.element_ty), is_row)
        if QUANTIZE:
            q_rows = quantized + head * aligned(q_head, ALIGNED)
            q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
            code = book + nearest_code * code_stride
            write_quantized(q_rows, q_stride, code, code_element, is_row, dim, CHUNK)
