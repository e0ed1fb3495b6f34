"""The kernel that settles nearly every row: scores, bound, exact distances of what is left."""

import triton
import triton.language as tl

from vqvae_fast.triton.finish import (
    NO_CODE,
    arrives_last,
    is_nearer,
    merge_parts,
    write_quantized,
)
from vqvae_fast.triton.measure import exact_distance, scaled_distance
from vqvae_fast.triton.rows import row_offsets

# The low bits of a score make room for the number of its tile, counted from the span's first.
TILE_BITS = tl.constexpr(8)
TILES_PER_SPAN = tl.constexpr(1 << 8)
# How many groups of codes a row may measure in a span before it goes on the list.
MAX_ROUNDS = tl.constexpr(4)
UNSEEN = tl.constexpr(-3e38)


@triton.jit
def load_scaled(z, z_stride, centre, scale, d, dim, mask):
    """Elements d of the rows at z [R], centred and scaled, float32 [R, len(d)]; 0 behind dim."""
    valid = mask[:, None] & (d < dim)[None, :]
    value = tl.load(z[:, None] + (d.to(tl.int64) * z_stride)[None, :], valid, other=0.0)
    middle = tl.load(centre + d)
    return tl.where(valid, (value.to(tl.float32) - middle[None, :]) * scale, 0.0)


@triton.jit
def round_rows(value, dtype: tl.constexpr):
    """The rows in the matrix unit's type, and whether they fit it; what does not becomes 0."""
    rounded = value.to(dtype)
    fits = tl.abs(rounded.to(tl.float32)) < float("inf")  # false for NaN, too
    return tl.where(fits, rounded, 0.0), tl.min(fits.to(tl.int32), axis=1) > 0


@triton.jit
def lowest_score(
    distance, to_centre, scale, max_norm, has_outliers, rounding, row_norm, dim,
    EPSILON: tl.constexpr, SUBNORMAL: tl.constexpr, LARGEST: tl.constexpr,
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
    code_rounding = EPSILON * radius + SUBNORMAL * tl.sqrt(dims)
    z_rounding = rounding.to(tl.float64) + 1.2e-7 * reach + 1e-17
    z_norm = row_norm.to(tl.float64)
    addition = (dims + 16) * 2.4e-7
    error = (
        z_rounding * radius
        + z_norm * code_rounding
        + addition * (z_norm * (radius + code_rounding) + 0.5 * radius * radius)
    )
    square = (to_centre + distance) * scale * scale
    lowest = 0.5 * (to_centre - distance) * scale * scale - 1.02 * error - (dims + 16) * 2.3e-16 * square - 1e-30
    # The number of the tile in the low bits, and the rounding of this result to float32.
    lowest -= 3.1e-5 * tl.abs(lowest)
    # Codes too large for packing were left out: right where the triangle keeps them out anyway.
    lowest = tl.where((has_outliers > 0) & (triangle >= 0.99 * LARGEST), UNSEEN, lowest)
    return tl.maximum(lowest, UNSEEN).to(tl.float32)


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_inner_stride", "z_head", "num_rows",
        "book_stride", "code_stride", "num_codes", "dim",
        "q_inner", "q_outer_stride", "q_inner_stride", "q_head", "packed_codes", "parts",
    ]
)  # fmt: skip
def search_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    packed, bias, centre, scale_of_book, max_norm, has_outliers, packed_codes, chunks,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    listed, num_listed, arrivals, part_distances, part_codes, parts,
    ONE_CHUNK: tl.constexpr,
    SEVERAL_PARTS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    MEASURE_DIM: tl.constexpr,
    EPSILON: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """A block of rows against one part of the codes; the last of the parts to finish merges.

    Codes c, c + SLOTS, c + 2 SLOTS, ... of a tile form a group; a slot is a group's place in every
    tile. For each row and slot the loop keeps the best and the second best group. A group is
    known by its best score alone, so it is measured as a whole.
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    PRECISION: tl.constexpr = "ieee" if packed.dtype.element_ty == tl.float32 else "tf32"
    head = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    z_rows = z + head * z_head + row_offsets(row, z_inner, z_outer_stride, z_inner_stride)
    book = codebook + head * book_stride
    centre += head * chunks * BLOCK_DIM
    scale = tl.load(scale_of_book + head)
    longest = tl.load(max_norm + head).to(tl.float32, bitcast=True)
    outliers = tl.load(has_outliers + head)

    # The rows, once: whether they can be packed, and what rounding does to them.
    column = tl.arange(0, BLOCK_DIM)
    fits = is_row
    rounding = tl.zeros((BLOCK_ROWS,), tl.float32)
    row_norm = tl.zeros((BLOCK_ROWS,), tl.float32)
    rounded = tl.zeros((BLOCK_ROWS, BLOCK_DIM), packed.dtype.element_ty)
    for chunk in range(chunks):
        d = chunk * BLOCK_DIM + column
        value = load_scaled(z_rows, z_stride, centre, scale, d, dim, is_row)
        rounded, chunk_fits = round_rows(value, packed.dtype.element_ty)
        fits &= chunk_fits
        back = rounded.to(tl.float32)
        rounding += tl.sum((value - back) * (value - back), axis=1)
        row_norm += tl.sum(back * back, axis=1)
    rounding, row_norm = tl.sqrt(rounding), tl.sqrt(row_norm)

    nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
    nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
    lowest = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
    unsettled = fits == 0

    tiles = packed_codes // BLOCK_CODES
    last_tile = (part + 1) * tiles // parts
    lanes = tl.arange(0, BLOCK_CODES)
    slots = tl.arange(0, SLOTS)
    columns = chunks * BLOCK_DIM
    first_tile = part * tiles // parts
    first = head * packed_codes + first_tile.to(tl.int64) * BLOCK_CODES
    for span in range(first_tile, last_tile, TILES_PER_SPAN):
        best = tl.full((BLOCK_ROWS, SLOTS), UNSEEN, tl.float32)
        second = tl.full((BLOCK_ROWS, SLOTS), UNSEEN, tl.float32)
        codes_ptrs = packed + first * columns + lanes[:, None] * columns + column[None, :]
        bias_ptrs = bias + first + lanes
        for tile in tl.range(0, min(last_tile - span, TILES_PER_SPAN), num_stages=NUM_STAGES):
            score = tl.broadcast_to(tl.load(bias_ptrs)[None, :], (BLOCK_ROWS, BLOCK_CODES))
            if ONE_CHUNK:
                codes = tl.load(codes_ptrs)
                score = tl.dot(rounded, tl.trans(codes), score, input_precision=PRECISION)
            else:
                for chunk in range(chunks):
                    d = chunk * BLOCK_DIM + column
                    value = load_scaled(z_rows, z_stride, centre, scale, d, dim, is_row)
                    part_of_row, _ = round_rows(value, packed.dtype.element_ty)
                    codes = tl.load(codes_ptrs + chunk * BLOCK_DIM)
                    score = tl.dot(part_of_row, tl.trans(codes), score, input_precision=PRECISION)
            group = tl.max(tl.reshape(score, (BLOCK_ROWS, GROUP, SLOTS)), axis=1)
            bits = (group.to(tl.int32, bitcast=True) & -TILES_PER_SPAN) | tile
            group = bits.to(tl.float32, bitcast=True)
            second = tl.maximum(second, tl.minimum(best, group))
            best = tl.maximum(best, group)
            codes_ptrs += BLOCK_CODES * columns
            bias_ptrs += BLOCK_CODES

        first += TILES_PER_SPAN * BLOCK_CODES

        # The best group is measured, and every other that the bound then leaves.
        rounds = 0
        top = tl.max(best, axis=1)
        wanted = fits & (top >= lowest)
        while (tl.max(wanted.to(tl.int32), axis=0) > 0) & (rounds < MAX_ROUNDS):
            slot = tl.argmax(best, axis=1)
            tile = span + (top.to(tl.int32, bitcast=True) & (TILES_PER_SPAN - 1))
            first_code = tile.to(tl.int64) * BLOCK_CODES + slot
            is_top = (slots[None, :] == slot[:, None]) & wanted[:, None]
            best = tl.where(is_top, UNSEEN, best)

            members = tl.arange(0, GROUP)
            near = tl.full((BLOCK_ROWS, GROUP), float("inf"), tl.float32)
            for i in range(GROUP):
                code = first_code + i * SLOTS
                is_code = wanted & (code < num_codes)
                distance = scaled_distance(
                    z_rows, z_stride, book + code * code_stride, code_element,
                    scale, is_code, dim, MEASURE_DIM,
                )  # fmt: skip
                # NaN and infinity, of codes that must not be chosen, compare false and stay inf.
                is_near = (members == i)[None, :] & (is_code & (distance < float("inf")))[:, None]
                near = tl.where(is_near, distance[:, None], near)
            limit = tl.min(near, axis=1)
            limit = limit * (1 + (dim + 16) * 2.4e-7) + dim * 1e-37
            near = tl.where((near <= limit[:, None]) & (near < float("inf")), 1, 0)
            member = tl.argmax(near, axis=1)
            is_code = wanted & (tl.max(near, axis=1) > 0)
            to_centre = tl.zeros((BLOCK_ROWS,), tl.float64)
            while tl.max(is_code.to(tl.int32), axis=0) > 0:
                code = first_code + member * SLOTS
                distance, to_centre = exact_distance(
                    z_rows, z_stride, book + code * code_stride, code_element,
                    centre, wanted, dim, MEASURE_DIM,
                )  # fmt: skip
                nearer = is_code & is_nearer(distance, code, nearest, nearest_code)
                nearest = tl.where(nearer, distance, nearest)
                nearest_code = tl.where(nearer, code, nearest_code)
                near = tl.where(members[None, :] == member[:, None], 0, near)
                member = tl.argmax(near, axis=1)
                is_code = wanted & (tl.max(near, axis=1) > 0)
            bound = lowest_score(
                nearest, to_centre, scale, longest, outliers, rounding, row_norm, dim,
                EPSILON, SUBNORMAL, LARGEST,
            )  # fmt: skip
            lowest = tl.where(wanted & (nearest_code != NO_CODE), bound, lowest)
            top = tl.max(best, axis=1)
            wanted = fits & (top >= lowest) & (top > UNSEEN)
            rounds += 1
        unsettled |= wanted | (tl.max(second, axis=1) >= lowest)

    unsettled |= nearest_code == NO_CODE
    finishes = True
    if SEVERAL_PARTS:
        mine = (head * num_rows + row) * parts
        tl.store(part_distances + mine + part, nearest, is_row)
        tl.store(part_codes + mine + part, tl.where(unsettled, -1, nearest_code), is_row)
        block = head * tl.num_programs(0) + tl.program_id(0)
        finishes = arrives_last(arrivals + block + tl.arange(0, 1), parts)
    if finishes:
        if SEVERAL_PARTS:
            mine = (head * num_rows + row) * parts
            nearest, nearest_code, settled = merge_parts(
                part_distances, part_codes, mine, parts, is_row
            )
        else:
            settled = is_row & (unsettled == 0)
        out = head * num_rows + row
        tl.store(indices + out, nearest_code, settled)
        tl.store(distances + out, nearest.to(distances.dtype.element_ty), settled)
        if QUANTIZE:
            offset = row_offsets(row, q_inner, q_outer_stride, q_inner_stride)
            write_quantized(
                quantized + head * q_head + offset, q_stride,
                book + nearest_code * code_stride, code_element, settled, dim, MEASURE_DIM,
            )  # fmt: skip
        doubtful = is_row & (settled == 0)
        count = tl.sum(doubtful.to(tl.int32), axis=0)
        if count > 0:
            place = tl.atomic_add(num_listed + head, count, sem="relaxed")
            place += tl.cumsum(doubtful.to(tl.int32), axis=0) - 1
            tl.store(listed + head * num_rows + place, row.to(tl.int32), doubtful)
