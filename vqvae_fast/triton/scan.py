"""The scan: every score on the matrix unit, the best few groups of codes kept for each row."""

import triton
import triton.language as tl

from vqvae_fast.triton.rows import row_offsets

# The low bits of a score make room for the number of its tile, counted from the span's first.
TILE_BITS = tl.constexpr(8)
TILES_PER_SPAN = tl.constexpr(1 << 8)
# Below every score, also those of codes that are never chosen.
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
def exchange(value, group, other_value, other_group):
    """The higher pair first, then the lower one."""
    higher = value > other_value
    return (
        tl.where(higher, value, other_value),
        tl.where(higher, group, other_group),
        tl.where(higher, other_value, value),
        tl.where(higher, other_group, group),
    )


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_inner_stride", "z_head", "num_rows", "dim", "packed_codes",
    ]
)  # fmt: skip
def scan_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows, dim,
    packed, bias, centre, scale_of_book, packed_codes, chunks,
    scores, groups, rest, rounding, row_norm,
    ONE_CHUNK: tl.constexpr,
    SEVERAL_SPANS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """A block of rows against one part of the codes.

    Codes c, c + SLOTS, c + 2 SLOTS, ... of a tile form a group, which is known by its best score
    alone. A slot is a group's place in every tile. For each row and slot the loop keeps the best
    and the second best group; of those, the three best groups of each row are written:

        scores, groups: [3, H, parts, N], by falling score; group g holds the codes of tile
            g // SLOTS that lie at g % SLOTS + i * SLOTS.
        rest: [H, parts, N], no other group has a higher score; infinite for a row that does not
            fit the matrix unit's type.
        rounding, row_norm: [H, N], |Z - Z'| and |Z'|.
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    PRECISION: tl.constexpr = "ieee" if packed.dtype.element_ty == tl.float32 else "tf32"
    head = tl.program_id(2).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    z_rows = z + head * z_head + row_offsets(row, z_inner, z_outer_stride, z_inner_stride)
    columns = chunks * BLOCK_DIM
    centre += head * columns
    scale = tl.load(scale_of_book + head)

    # The rows, once: whether they can be packed, and what rounding does to them.
    column = tl.arange(0, BLOCK_DIM)
    fits = is_row
    rounding_square = tl.zeros((BLOCK_ROWS,), tl.float32)
    norm_square = tl.zeros((BLOCK_ROWS,), tl.float32)
    rounded = tl.zeros((BLOCK_ROWS, BLOCK_DIM), packed.dtype.element_ty)
    for chunk in range(chunks):
        value = load_scaled(z_rows, z_stride, centre, scale, chunk * BLOCK_DIM + column, dim, is_row)
        rounded, chunk_fits = round_rows(value, packed.dtype.element_ty)
        fits &= chunk_fits
        back = rounded.to(tl.float32)
        rounding_square += tl.sum((value - back) * (value - back), axis=1)
        norm_square += tl.sum(back * back, axis=1)
    if part == 0:
        tl.store(rounding + head * num_rows + row, tl.sqrt(rounding_square), is_row)
        tl.store(row_norm + head * num_rows + row, tl.sqrt(norm_square), is_row)

    entry = (head * parts + part) * num_rows + row
    entries = tl.num_programs(2).to(tl.int64) * parts * num_rows
    tl.store(rest + entry, tl.where(fits, UNSEEN, float("inf")), is_row)

    tiles = packed_codes // BLOCK_CODES
    first_tile = part * tiles // parts
    last_tile = (part + 1) * tiles // parts
    lanes = tl.arange(0, BLOCK_CODES)
    slots = tl.arange(0, SLOTS)
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
                    piece, _ = round_rows(value, packed.dtype.element_ty)
                    codes = tl.load(codes_ptrs + chunk * BLOCK_DIM)
                    score = tl.dot(piece, tl.trans(codes), score, input_precision=PRECISION)
            group = tl.max(tl.reshape(score, (BLOCK_ROWS, GROUP, SLOTS)), axis=1)
            bits = (group.to(tl.int32, bitcast=True) & -TILES_PER_SPAN) | tile
            group = bits.to(tl.float32, bitcast=True)
            second = tl.maximum(second, tl.minimum(best, group))
            best = tl.maximum(best, group)
            codes_ptrs += BLOCK_CODES * columns
            bias_ptrs += BLOCK_CODES
        first += TILES_PER_SPAN * BLOCK_CODES

        # The three best of this span, and of the spans before it.
        none = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
        score_1, score_2, score_3, others = none, none, none, tl.max(second, axis=1)
        group_1 = tl.zeros((BLOCK_ROWS,), tl.int32)
        group_2, group_3 = group_1, group_1
        if SEVERAL_SPANS:
            tl.debug_barrier()  # what the span before wrote, perhaps by another thread
            seen = is_row & (span > first_tile)
            score_1 = tl.load(scores + entry, seen, other=UNSEEN)
            score_2 = tl.load(scores + entries + entry, seen, other=UNSEEN)
            score_3 = tl.load(scores + 2 * entries + entry, seen, other=UNSEEN)
            group_1 = tl.load(groups + entry, seen, other=0)
            group_2 = tl.load(groups + entries + entry, seen, other=0)
            group_3 = tl.load(groups + 2 * entries + entry, seen, other=0)
        others = tl.maximum(others, tl.load(rest + entry, is_row, other=UNSEEN))
        for _ in tl.static_range(3):
            value = tl.max(best, axis=1)
            slot = tl.argmax(best, axis=1)
            best = tl.where(slots[None, :] == slot[:, None], UNSEEN, best)
            which = span + (value.to(tl.int32, bitcast=True) & (TILES_PER_SPAN - 1))
            which = which * SLOTS + slot
            score_1, group_1, value, which = exchange(value, which, score_1, group_1)
            score_2, group_2, value, which = exchange(value, which, score_2, group_2)
            score_3, group_3, value, which = exchange(value, which, score_3, group_3)
            others = tl.maximum(others, value)
        others = tl.maximum(others, tl.max(best, axis=1))
        tl.store(scores + entry, score_1, is_row)
        tl.store(scores + entries + entry, score_2, is_row)
        tl.store(scores + 2 * entries + entry, score_3, is_row)
        tl.store(groups + entry, group_1, is_row)
        tl.store(groups + entries + entry, group_2, is_row)
        tl.store(groups + 2 * entries + entry, group_3, is_row)
        tl.store(rest + entry, others, is_row)
