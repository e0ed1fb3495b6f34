"""The search without a filter: every code is measured in float64.

It serves the rows that have no bound, and float64 input.
"""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.rows import aligned, row_offsets
from vqvae_fast.backends.triton.sharing import (
    blocks_and_parts,
    nearest_of_lanes,
    share_result,
)
from vqvae_fast.backends.triton.write import NO_CODE, take_nearer, write_quantized


@triton.jit
def load_elements(rows, stride, d, mask, dim):
    """Elements d of the rows at `rows` [R], float64 [R, len(d)]; 0 behind dim."""
    valid = mask[:, None] & (d < dim)[None, :]
    value = tl.load(rows[:, None] + (d.to(tl.int64) * stride)[None, :], valid, other=0.0)
    return value.to(tl.float64)


@triton.jit(
    do_not_specialize=[
        "z_inner", "z_outer_stride", "z_head",
        "num_rows", "book_stride", "num_codes",
        "q_inner", "q_outer_stride", "q_head", "most_items",
    ],
    do_not_specialize_on_alignment=[
        "z_inner_stride", "z_stride", "code_element", "q_inner_stride", "q_stride",
    ],
)  # fmt: skip
def exact_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    listed, num_listed, arrivals, part_distances, part_codes, most_items,
    ALIGNED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Measures the rows at the back of the list, or all of them, against every code.

    num_listed: [2, H], of which the second part is used.
    arrivals: [H, most_items] zeros; part_distances, part_codes: [H, most_items, BLOCK_ROWS]. Only
        shared blocks use them, of which there are at most as many items as programs.
    """
    head = tl.program_id(1).to(tl.int64)
    book = codebook + head * aligned(book_stride, ALIGNED)
    num_codes = num_codes.to(tl.int64)
    programs = tl.num_programs(0)
    count = num_rows if ALL_ROWS else tl.load(num_listed + tl.num_programs(1) + head)
    blocks, parts = blocks_and_parts(count, tl.cdiv(num_codes, BLOCK_CODES), BLOCK_ROWS)
    part_size = tl.cdiv(num_codes, parts)
    for item in range(tl.program_id(0), blocks * parts, programs):
        block, part = item // parts, item % parts
        entry = tl.arange(0, BLOCK_ROWS).to(tl.int64) + block * BLOCK_ROWS
        is_row = entry < count
        row = entry
        if not ALL_ROWS:
            row = tl.load(listed + (head + 1) * num_rows - 1 - entry, is_row, other=0)
        z_rows = z + head * aligned(z_head, ALIGNED)
        z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)

        lane_distance = tl.full((BLOCK_ROWS, BLOCK_CODES), float("inf"), tl.float64)
        lane_code = tl.full((BLOCK_ROWS, BLOCK_CODES), NO_CODE, tl.int64)
        last = tl.minimum(num_codes, (part + 1) * part_size)
        for first in range(part * part_size, last, BLOCK_CODES):
            code = (first + tl.arange(0, BLOCK_CODES))[None, :]
            usable = code < last
            distance = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float64)
            a_ptrs, e_ptrs = z_rows[:, None], book + code * code_stride
            # One element at a time: a thread's sums need no other thread.
            for _ in range(dim):
                a = tl.load(a_ptrs, is_row[:, None], other=0.0).to(tl.float64)
                e = tl.load(e_ptrs, code < last, other=0.0).to(tl.float64)
                usable &= tl.abs(e) < float("inf")
                distance += (a - e) * (a - e)
                a_ptrs += z_stride
                e_ptrs += code_element
            lane_distance, lane_code = take_nearer(distance, code, usable, lane_distance, lane_code)
        distance, code = nearest_of_lanes(lane_distance, lane_code)

        first_part = (head * most_items + block * parts) * BLOCK_ROWS
        distance, code, finishes = share_result(
            distance, code, part_distances + first_part, part_codes + first_part,
            arrivals + head * most_items + block, part, parts, BLOCK_ROWS,
        )  # fmt: skip
        if finishes:
            is_nan = tl.zeros((BLOCK_ROWS,), tl.int32)
            to_first = tl.zeros((BLOCK_ROWS,), tl.float64)
            for start in range(0, dim, CHUNK):
                d = start + tl.arange(0, CHUNK)
                a = load_elements(z_rows, z_stride, d, is_row, dim)
                e = tl.load(book + d.to(tl.int64) * code_element, d < dim, other=0.0)
                is_nan |= tl.max((a != a).to(tl.int32), axis=1)
                difference = a - e.to(tl.float64)[None, :]
                to_first += tl.sum(difference * difference, axis=1)
            nowhere = code == NO_CODE
            distance = tl.where(nowhere, to_first, distance)
            distance = tl.where(is_nan > 0, float("nan"), distance)
            code = tl.where(nowhere | (is_nan > 0), 0, code)
            out = head * num_rows + row
            tl.store(indices + out, code, is_row)
            tl.store(distances + out, distance.to(distances.dtype.element_ty), is_row)
            if QUANTIZE:
                q_rows = quantized + head * aligned(q_head, ALIGNED)
                q_rows += row_offsets(row, q_inner, q_outer_stride, q_inner_stride, ALIGNED)
                chosen = book + code * code_stride
                write_quantized(q_rows, q_stride, chosen, code_element, is_row, dim, CHUNK)
