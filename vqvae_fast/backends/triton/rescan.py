"""The second pass: computes all scores of the listed rows again, each against its row's bound."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.measure import measure_group
from vqvae_fast.backends.triton.rows import aligned, row_offsets
from vqvae_fast.backends.triton.scan import (
    UNSEEN,
    load_scaled,
    round_rows,
    starts_of_tile,
    with_ones,
)
from vqvae_fast.backends.triton.sharing import blocks_and_parts, share_result
from vqvae_fast.backends.triton.write import NO_CODE, write_quantized

# Tiles whose groups a program looks through before it measures: one bit for each in 32.
_TILES = tl.constexpr(32)


@triton.jit
def lowest_bit(bits):
    """The lowest bit that is set in uint32 `bits`, as a number from 0 to 31."""
    lowest = bits & (~bits + 1)
    return (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "book_stride", "num_codes",
        "q_inner", "q_outer_stride", "q_head", "packed_codes", "most_items",
    ],
    do_not_specialize_on_alignment=[
        "z_inner_stride", "z_stride", "code_element", "q_inner_stride", "q_stride",
    ],
)  # fmt: skip
def rescan_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    packed, start, centre, scale_of_book, packed_codes, chunks,
    listed, num_listed, bounds, arrivals, part_distances, part_codes, most_items,
    ALIGNED: tl.constexpr,
    QUANTIZE: tl.constexpr,
    START_COLUMNS: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP_CHUNK: tl.constexpr,
):  # fmt: skip
    """Measures, for the rows at the front of the list, every group that reaches their bound.

    The code that `settle` measured for a row reaches the bound, too, so it is measured again.

    listed, num_listed: what `recheck` wrote; of num_listed the first part is used.
    bounds: what `settle` wrote.
    arrivals, part_distances, part_codes: as for `exact`.
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    PRECISION: tl.constexpr = "ieee" if packed.dtype.element_ty == tl.float32 else "tf32"
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1).to(tl.int64)
    book = codebook + head * aligned(book_stride, ALIGNED)
    columns = chunks * BLOCK_DIM
    centre += head * columns
    scale = tl.load(scale_of_book + head)
    count = tl.load(num_listed + head)
    tiles = packed_codes // BLOCK_CODES
    blocks, parts = blocks_and_parts(count, tiles, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_DIM)
    lanes = tl.arange(0, BLOCK_CODES)
    slots = tl.arange(0, SLOTS)
    for item in range(tl.program_id(0), blocks * parts, tl.num_programs(0)):
        block, part = item // parts, item % parts
        entry = tl.arange(0, BLOCK_ROWS).to(tl.int64) + block * BLOCK_ROWS
        is_row = entry < count
        row = tl.load(listed + head * num_rows + entry, is_row, other=0)
        out = head * num_rows + row
        z_rows = z + head * aligned(z_head, ALIGNED)
        z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
        lowest = tl.load(bounds + out, is_row, other=float("inf"))
        limit = tl.load(bounds + heads * num_rows + out, is_row, other=0.0)
        if ONE_CHUNK:
            row_tile, _fits = round_rows(
                load_scaled(z_rows, z_stride, centre, scale, column, dim, is_row),
                packed.dtype.element_ty,
            )
            row_tile = with_ones(row_tile, column, dim, START_COLUMNS)
        nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
        nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
        nearest_score = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
        first_tile = tiles // parts * part + tl.minimum(part, tiles % parts)
        last_tile = first_tile + tiles // parts + (part < tiles % parts).to(tl.int32)
        first_code = first_tile.to(tl.int64) * BLOCK_CODES
        for first in range(first_tile, last_tile, _TILES):
            # A bit for each tile says whether its group reaches the bound.
            reached = tl.zeros((BLOCK_ROWS, SLOTS), tl.uint32)
            bit = tl.full((1, 1), 1, tl.uint32)
            start_ptrs = start + head * packed_codes + first_code + lanes
            codes_ptrs = packed + (head * packed_codes + first_code) * columns
            codes_ptrs += lanes[:, None] * columns + column[None, :]
            for _ in tl.range(0, tl.minimum(_TILES, last_tile - first), num_stages=NUM_STAGES):
                if START_COLUMNS == 0:
                    score = starts_of_tile(start_ptrs, BLOCK_ROWS, BLOCK_CODES, 1)
                else:
                    score = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float32)
                if ONE_CHUNK:
                    codes = tl.load(codes_ptrs)
                    score = tl.dot(row_tile, tl.trans(codes), score, input_precision=PRECISION)
                else:
                    for chunk in tl.range(0, chunks, num_stages=NUM_STAGES):
                        piece, _fits = round_rows(
                            load_scaled(
                                z_rows, z_stride, centre, scale, chunk * BLOCK_DIM + column, dim,
                                is_row,
                            ),
                            packed.dtype.element_ty,
                        )  # fmt: skip
                        codes = tl.load(codes_ptrs + chunk * BLOCK_DIM)
                        score = tl.dot(piece, tl.trans(codes), score, input_precision=PRECISION)
                group = tl.max(tl.reshape(score, (BLOCK_ROWS, GROUP, SLOTS)), axis=1)
                reached |= tl.where(group >= lowest[:, None], bit, 0)
                bit += bit
                codes_ptrs += BLOCK_CODES * columns
                start_ptrs += BLOCK_CODES

            # Measure one group of each row at a time; rows may take theirs from different tiles.
            while tl.max(tl.max((reached != 0).to(tl.int32), axis=1), axis=0) > 0:
                slot = tl.argmax((reached != 0).to(tl.int32), axis=1)
                is_slot = slots[None, :] == slot[:, None]
                bits = tl.sum(tl.where(is_slot, reached, 0).to(tl.int32, bitcast=True), axis=1)
                wanted = bits != 0
                tile = lowest_bit(bits.to(tl.uint32, bitcast=True)).to(tl.int64)
                limit, nearest, nearest_code, nearest_score = measure_group(
                    z_rows, z_stride, book, code_stride, code_element, num_codes, dim, centre,
                    scale, first_code + tile * BLOCK_CODES + slot, wanted,
                    limit, nearest, nearest_code, nearest_score,
                    GROUP, SLOTS, CHUNK, GROUP_CHUNK, True,
                )  # fmt: skip
                reached = tl.where(is_slot, reached & (reached - 1), reached)
            first_code += _TILES * BLOCK_CODES

        first_part = (head * most_items + block * parts) * BLOCK_ROWS
        nearest, nearest_code, finishes = share_result(
            nearest, nearest_code, part_distances + first_part, part_codes + first_part,
            arrivals + head * most_items + block, part, parts, BLOCK_ROWS,
        )  # fmt: skip
        if finishes:
            # At least one code reaches the bound. In any case no row gets an invalid index.
            found = is_row & (nearest_code != NO_CODE)
            tl.store(indices + out, nearest_code, found)
            tl.store(distances + out, nearest.to(distances.dtype.element_ty), found)
            if QUANTIZE:
                q_rows = quantized + head * aligned(q_head, ALIGNED)
                q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
                chosen = book + tl.where(found, nearest_code, 0) * code_stride
                write_quantized(q_rows, q_stride, chosen, code_element, found, dim, CHUNK)
