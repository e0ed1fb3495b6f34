"""The scan: every score on the matrix unit, the best group of codes kept for each row."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.rows import aligned, row_offsets

# The low bits of a key make room for the number of its tile, counted from the part's first.
TILES_PER_PART = tl.constexpr(1 << 8)
# Below every key that a score can have.
NO_KEY = tl.constexpr(-(1 << 31))
# Below every score, also those of codes that are never chosen.
UNSEEN = tl.constexpr(-3e38)


@triton.jit
def load_scaled(z, z_stride, centre, scale, d, dim, mask):
    """Elements d of the rows at z [R], centred and scaled, float32 [R, len(d)]; 0 behind dim."""
    valid = mask[:, None] & (d < dim)[None, :]
    value = tl.load(z[:, None] + (d.to(tl.int64) * z_stride)[None, :], valid, other=0.0)
    middle = tl.load(centre + d)
    # First scaled, which is exact: the difference of the largest numbers overflows.
    return tl.where(valid, value.to(tl.float32) * scale - (middle * scale)[None, :], 0.0)


@triton.jit
def round_rows(value, dtype: tl.constexpr):
    """The rows in the matrix unit's type, and whether they fit it; rows that do not become 0."""
    rounded = value.to(dtype)
    fits = tl.abs(rounded.to(tl.float32)) < float("inf")  # false for NaN, too
    return tl.where(fits, rounded, 0.0), tl.min(fits.to(tl.int32), axis=1) > 0


@triton.jit
def pack_errors(
    z, z_stride, centre, scale, columns, dim, mask, packed_rows,
    STORE: tl.constexpr, START_COLUMNS: tl.constexpr, dtype: tl.constexpr,
    CHECK_DIM: tl.constexpr,
):  # fmt: skip
    """For the rows at z [R]: whether they can be packed, |Z - Z'| and |Z'|.

    STORE: Z' goes to `packed_rows` [R], zeros for rows that are not wanted, and behind dim
        START_COLUMNS ones, then zeros.
    """
    fits = mask
    rounding_square = tl.zeros(z.shape, tl.float32)
    norm_square = tl.zeros(z.shape, tl.float32)
    for start in range(0, columns, CHECK_DIM):
        d = start + tl.arange(0, CHECK_DIM)
        value = load_scaled(z, z_stride, centre, scale, d, dim, mask)
        rounded, chunk_fits = round_rows(value, dtype)
        fits &= chunk_fits
        back = rounded.to(tl.float32)
        rounding_square += tl.sum((value - back) * (value - back), axis=1)
        norm_square += tl.sum(back * back, axis=1)
        if STORE:
            packed = with_ones(rounded, d, dim, START_COLUMNS)
            tl.store(packed_rows[:, None] + d[None, :], packed)
    return fits, tl.sqrt(rounding_square), tl.sqrt(norm_square)


@triton.jit
def with_ones(rounded, d, dim, START_COLUMNS: tl.constexpr):
    """Packed rows, elements d, with the ones behind dim that a code's start is multiplied by."""
    if START_COLUMNS == 0:
        return rounded
    is_start = (d >= dim) & (d < dim + START_COLUMNS)
    return tl.where(is_start[None, :], 1.0, rounded).to(rounded.dtype)


@triton.jit
def starts_of_tile(
    start_ptrs, BLOCK_ROWS: tl.constexpr, BLOCK_CODES: tl.constexpr, COPIES: tl.constexpr
):
    """The starts of the scores [BLOCK_ROWS, BLOCK_CODES] of a tile, the same in all rows.

    start_ptrs: [COPIES * BLOCK_CODES], the tile's codes again and again. Each share of the rows
        has a copy of its own; `copies_of_starts` says why.
    """
    copies = tl.reshape(tl.load(start_ptrs), (COPIES, 1, BLOCK_CODES))
    copies = tl.broadcast_to(copies, (COPIES, BLOCK_ROWS // COPIES, BLOCK_CODES))
    return tl.reshape(copies, (BLOCK_ROWS, BLOCK_CODES))


@triton.jit
def group_keys(score, tile, GROUP: tl.constexpr, SLOTS: tl.constexpr):
    """The key of each group [R, SLOTS] of a tile: its best score's bits, the tile in the low ones.

    Keys are compared as integers, of which sm_90 takes the maximum of three in one instruction.
    That is the order of the scores where these are not negative. A negative score has a negative
    key and loses to all others, but the order among negative keys means nothing.
    """
    bits = tl.reshape(score.to(tl.int32, bitcast=True), (score.shape[0], GROUP, SLOTS))
    return (tl.max(bits, axis=1) & -TILES_PER_PART) | tile


@triton.jit
def score_of(key, negative):
    """The score of a key; `negative` if the key is negative."""
    return tl.where(key < 0, negative, key.to(tl.float32, bitcast=True))


@triton.jit
def tile_of(key):
    """The number of the tile that a group's key carries."""
    return key & (TILES_PER_PART - 1)


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "first_row", "slab_rows", "packed_codes",
    ],
    do_not_specialize_on_alignment=["z_inner_stride", "z_stride"],
)  # fmt: skip
def scan_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    first_row, slab_rows, dim,
    packed, start, centre, scale_of_book, packed_codes, chunks,
    scores, groups, rest, keys, seconds, rounding, row_norm, packed_rows, num_in_doubt,
    ALIGNED: tl.constexpr,
    STORE_ROWS: tl.constexpr,
    START_COLUMNS: tl.constexpr,
    COPIES: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CHECK_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """A block of the slab's rows against one part of the codes, of TILES_PER_PART tiles at most.

    Codes c, c + SLOTS, c + 2 SLOTS, ... of a tile form a group, which is known by its best score
    alone. A slot is a group's place in every tile. For each row and slot the loop keeps the best
    and the second best group, and this is written of them:

        scores, groups: [H, parts, slab]; group g holds the codes of tile g // SLOTS that lie at
            g % SLOTS + i * SLOTS.
        rest: [H, parts, slab], no other group has a higher score.
        keys: [H, parts, slab, SLOTS], the best group of each slot.
        seconds: [H, parts, slab], no group that is not the best of its slot has a higher score.
        rounding, row_norm: [H, slab], |Z - Z'| and |Z'|; the rounding is infinite for a row that
            does not fit the matrix unit's type.

    STORE_ROWS: for long rows, those in pieces and those with strides or masks, packed_rows
        [H, padded slab, columns] gets Z'.
    num_in_doubt: [H], set to 0 for `settle`, which counts the slab's rows.
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    PRECISION: tl.constexpr = "ieee" if packed.dtype.element_ty == tl.float32 else "tf32"
    head = tl.program_id(2).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    in_slab = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = (in_slab < slab_rows) & (in_slab < num_rows - first_row)
    row = first_row + in_slab.to(num_rows.dtype)  # an overflow can only occur behind the last row
    dim = aligned(dim, ALIGNED)
    z_rows = z + head * aligned(z_head, ALIGNED)
    z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
    columns = chunks * BLOCK_DIM
    centre += head * columns
    scale = tl.load(scale_of_book + head)

    # Read the rows once: whether they can be packed, and how large their roundings are. All but
    # short contiguous rows go through memory: with strides, centre and masks at once they would
    # spill.
    padded_rows = tl.num_programs(0).to(tl.int64) * BLOCK_ROWS
    row_ptrs = packed_rows + (head * padded_rows + in_slab) * columns
    fits, row_rounding, norm = pack_errors(
        z_rows, z_stride, centre, scale, columns, dim, is_row, row_ptrs,
        STORE_ROWS, START_COLUMNS, packed.dtype.element_ty, CHECK_DIM,
    )  # fmt: skip
    if STORE_ROWS:
        tl.debug_barrier()  # the programs of other parts write the same
    if part == 0:
        tl.store(num_in_doubt + head, 0, tl.program_id(0) == 0)
        row_rounding = tl.where(fits, row_rounding, float("inf"))
        tl.store(rounding + head * slab_rows + in_slab, row_rounding, is_row)
        tl.store(row_norm + head * slab_rows + in_slab, norm, is_row)

    column = tl.arange(0, BLOCK_DIM)
    if ONE_CHUNK and STORE_ROWS:
        row_tile = tl.load(row_ptrs[:, None] + column[None, :])
    elif ONE_CHUNK:
        row_tile, _fits = round_rows(
            load_scaled(z_rows, z_stride, centre, scale, column, dim, is_row),
            packed.dtype.element_ty,
        )
        row_tile = with_ones(row_tile, column, dim, START_COLUMNS)

    tiles = packed_codes // BLOCK_CODES
    first_tile = tiles // parts * part + tl.minimum(part, tiles % parts)
    last_tile = first_tile + tiles // parts + (part < tiles % parts).to(tl.int32)
    lanes = tl.arange(0, BLOCK_CODES)
    first = head * packed_codes + first_tile.to(tl.int64) * BLOCK_CODES
    packed += first * columns
    # A thread reads many elements of long rows. In 64 bits their addresses are one address plus
    # constants.
    OFFSET: tl.constexpr = tl.int32 if BLOCK_DIM <= 64 else tl.int64
    in_tile = lanes.to(OFFSET)[:, None] * columns + column.to(OFFSET)[None, :]
    start += first
    start_lanes = tl.arange(0, COPIES * BLOCK_CODES) % BLOCK_CODES
    best = tl.full((BLOCK_ROWS, SLOTS), NO_KEY, tl.int32)
    second = tl.full((BLOCK_ROWS, SLOTS), NO_KEY, tl.int32)
    for tile in tl.range(0, last_tile - first_tile, num_stages=NUM_STAGES):
        if START_COLUMNS == 0:
            score = starts_of_tile(start + start_lanes, BLOCK_ROWS, BLOCK_CODES, COPIES)
        else:
            score = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float32)
        if ONE_CHUNK:
            codes = tl.load(packed + in_tile)
            score = tl.dot(row_tile, tl.trans(codes), score, input_precision=PRECISION)
        else:
            for chunk in tl.range(0, chunks, num_stages=NUM_STAGES):
                piece = tl.load(row_ptrs[:, None] + (chunk * BLOCK_DIM + column)[None, :])
                codes = tl.load(packed + in_tile + chunk * BLOCK_DIM)
                score = tl.dot(piece, tl.trans(codes), score, input_precision=PRECISION)
        group = group_keys(score, tile, GROUP, SLOTS)
        second = tl.maximum(second, tl.minimum(best, group))
        best = tl.maximum(best, group)
        packed += BLOCK_CODES * columns
        start += BLOCK_CODES

    top = tl.max(best, axis=1)
    slot = tl.argmax(best, axis=1)
    others = tl.where(tl.arange(0, SLOTS)[None, :] == slot[:, None], NO_KEY, best)
    others = tl.max(tl.maximum(others, second), axis=1)
    first_entry = (head * parts + part) * slab_rows + tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    entry = tl.arange(0, BLOCK_ROWS)
    in_keys = entry[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    # Negative keys are not in order; such groups are only known not to score above 0.
    tl.store(scores + first_entry + entry, score_of(top, UNSEEN), is_row)
    tl.store(groups + first_entry + entry, (first_tile + tile_of(top)) * SLOTS + slot, is_row)
    tl.store(keys + first_entry * SLOTS + in_keys, best, is_row[:, None])
    tl.store(seconds + first_entry + entry, score_of(tl.max(second, axis=1), 0.0), is_row)
    tl.store(rest + first_entry + entry, score_of(others, 0.0), is_row)
