"""The second look: measures, of the rows in doubt, the best group of each slot that may win."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.measure import measure_group
from vqvae_fast.backends.triton.rows import aligned, row_offsets
from vqvae_fast.backends.triton.scan import NO_KEY, UNSEEN, score_of, tile_of
from vqvae_fast.backends.triton.write import NO_CODE, list_rows, write_quantized


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "first_row", "slab_rows", "book_stride", "num_codes",
        "q_inner", "q_outer_stride", "q_head", "packed_codes", "columns", "parts",
    ],
    do_not_specialize_on_alignment=[
        "z_inner_stride", "z_stride", "code_element", "q_inner_stride", "q_stride",
    ],
)  # fmt: skip
def recheck_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    first_row, slab_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    centre, scale_of_book, packed_codes, columns,
    scores, keys, seconds, parts,
    in_doubt, num_in_doubt, listed, num_listed, bounds,
    ALIGNED: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP_CHUNK: tl.constexpr,
):  # fmt: skip
    """Measures the groups that the scan has kept, and lists the rows for which it kept too few.

    A slot's second best group is not kept, only its score. A row for which such a score reaches the
    bound goes into the list for `rescan`. For all other rows in doubt, every group that reaches the
    bound is the best of its slot and its part. The code that `settle` measured is in such a group,
    and is measured again.

    scores, keys, seconds: what `scan` wrote for this slab.
    in_doubt, num_in_doubt, bounds: what `settle` wrote.
    listed, num_listed: rows for `rescan` are added at the front of the list.
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1).to(tl.int64)
    book = codebook + head * aligned(book_stride, ALIGNED)
    middle = centre + head * columns
    scale = tl.load(scale_of_book + head)
    count = tl.load(num_in_doubt + head)
    tiles = packed_codes // BLOCK_CODES
    lanes = tl.arange(0, PARTS)
    slots = tl.arange(0, SLOTS)
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK_ROWS), tl.num_programs(0)):
        entry = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        is_row = entry < count
        in_slab = tl.load(in_doubt + head * slab_rows + entry, is_row, other=0)
        row = first_row + in_slab
        out = head * num_rows + row
        z_rows = z + head * aligned(z_head, ALIGNED)
        z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)
        lowest = tl.load(bounds + out, is_row, other=float("inf"))
        limit = tl.load(bounds + heads * num_rows + out, is_row, other=0.0)
        first_entry = head * parts * slab_rows + in_slab

        highest_second = tl.full((BLOCK_ROWS, PARTS), UNSEEN, tl.float32)
        for first in range(0, parts, PARTS):
            part = first + lanes
            at = first_entry[:, None] + (part.to(tl.int64) * slab_rows)[None, :]
            mask = is_row[:, None] & (part < parts)[None, :]
            second = tl.load(seconds + at, mask, other=UNSEEN)
            highest_second = tl.maximum(highest_second, second)
        is_kept = is_row & (tl.max(highest_second, axis=1) < lowest)

        nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
        nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
        nearest_score = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
        for first in range(0, parts, PARTS):
            part = first + lanes
            at = first_entry[:, None] + (part.to(tl.int64) * slab_rows)[None, :]
            mask = is_kept[:, None] & (part < parts)[None, :]
            score = tl.load(scores + at, mask, other=UNSEEN)
            parts_left = (mask & (score >= lowest[:, None])).to(tl.int32)
            # Each row takes its own next part, and of that its own next slot.
            while tl.max(tl.max(parts_left, axis=1), axis=0) > 0:
                lane = tl.argmax(parts_left, axis=1)
                has_part = tl.max(parts_left, axis=1) > 0
                parts_left = tl.where(lanes[None, :] == lane[:, None], 0, parts_left)
                chosen_part = first + lane
                first_tile = tiles // parts * chosen_part + tl.minimum(chosen_part, tiles % parts)
                key_ptrs = keys + (first_entry + chosen_part.to(tl.int64) * slab_rows) * SLOTS
                key = tl.load(key_ptrs[:, None] + slots[None, :], has_part[:, None], other=NO_KEY)
                slots_left = (score_of(key, UNSEEN) >= lowest[:, None]).to(tl.int32)
                while tl.max(tl.max(slots_left, axis=1), axis=0) > 0:
                    slot = tl.argmax(slots_left, axis=1)
                    wanted = tl.max(slots_left, axis=1) > 0
                    is_slot = slots[None, :] == slot[:, None]
                    slots_left = tl.where(is_slot, 0, slots_left)
                    tile = first_tile + tile_of(tl.sum(tl.where(is_slot, key, 0), axis=1))
                    limit, nearest, nearest_code, nearest_score = measure_group(
                        z_rows, z_stride, book, code_stride, code_element, num_codes, dim, middle,
                        scale, tile.to(tl.int64) * BLOCK_CODES + slot, wanted,
                        limit, nearest, nearest_code, nearest_score,
                        GROUP, SLOTS, CHUNK, GROUP_CHUNK, True,
                    )  # fmt: skip

        # A row of which no group was found keeps the code that `settle` has written.
        found = is_kept & (nearest_code != NO_CODE)
        tl.store(indices + out, nearest_code, found)
        tl.store(distances + out, nearest.to(distances.dtype.element_ty), found)
        if QUANTIZE:
            q_rows = quantized + head * aligned(q_head, ALIGNED)
            q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
            chosen = book + tl.where(found, nearest_code, 0) * code_stride
            write_quantized(q_rows, q_stride, chosen, code_element, found, dim, CHUNK)
        list_rows(listed + head * num_rows, 1, num_listed + head, row, is_row & (is_kept == 0))
