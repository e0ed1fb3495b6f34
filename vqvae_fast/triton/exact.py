"""The search without a filter: every code is measured in float64.

For the rows that the bound could not settle, and for float64 input.
"""

import triton
import triton.language as tl

from vqvae_fast.triton.finish import (
    NO_CODE,
    arrives_last,
    merge_parts,
    write_quantized,
)
from vqvae_fast.triton.rows import row_offsets


@triton.jit(
    do_not_specialize=[
        "z_head", "z_inner", "z_outer_stride", "z_inner_stride", "num_rows",
        "book_stride", "code_stride", "num_codes", "dim",
        "q_head", "q_inner", "q_outer_stride", "q_inner_stride", "parts",
    ]
)  # fmt: skip
def exact_kernel(
    z, z_inner, z_outer_stride, z_inner_stride, z_stride, z_head, num_rows,
    codebook, book_stride, code_stride, code_element, num_codes, dim,
    indices, distances,
    quantized, q_inner, q_outer_stride, q_inner_stride, q_stride, q_head,
    listed, num_listed, arrivals, part_distances, part_codes, parts,
    ALL_ROWS: tl.constexpr,
    SEVERAL_PARTS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A row's codes are shared out among `parts` programs; the last of them to finish merges."""
    head = tl.program_id(1).to(tl.int64)
    book = codebook + head * book_stride
    num_codes = num_codes.to(tl.int64)
    part_size = tl.cdiv(num_codes, parts)
    count = num_rows.to(tl.int64) if ALL_ROWS else tl.load(num_listed + head).to(tl.int64)
    for item in range(tl.program_id(0).to(tl.int64), count * parts, tl.num_programs(0)):
        entry, part = item // parts, item % parts
        row = tl.zeros((1,), tl.int64) + entry
        if not ALL_ROWS:
            row = tl.load(listed + head * num_rows + row)
        z_row = z + head * z_head + row_offsets(row, z_inner, z_outer_stride, z_inner_stride)

        lane_distance = tl.full((BLOCK_CODES,), float("inf"), tl.float64)
        lane_code = tl.full((BLOCK_CODES,), NO_CODE, tl.int64)
        last = tl.minimum(num_codes, (part + 1) * part_size)
        for first in range(part * part_size, last, BLOCK_CODES):
            code = first + tl.arange(0, BLOCK_CODES)
            usable = code < last
            distance = tl.zeros((BLOCK_CODES,), tl.float64)
            for start in range(0, dim, CHUNK):
                d = (start + tl.arange(0, CHUNK)).to(tl.int64)
                mask = (code < last)[:, None] & (d < dim)[None, :]
                a = tl.load(z_row + d * z_stride, d < dim, other=0.0).to(tl.float64)
                e_ptrs = book + (code * code_stride)[:, None] + (d * code_element)[None, :]
                e = tl.load(e_ptrs, mask, other=0.0).to(tl.float64)
                finite = tl.abs(e) < float("inf")
                usable &= tl.min(finite.to(tl.int32), axis=1) > 0
                distance += tl.sum((a[None, :] - e) * (a[None, :] - e), axis=1)
            # The first usable code stays when nothing is nearer: an infinite distance is one, too.
            nearer = usable & ((distance < lane_distance) | (lane_code == NO_CODE))
            lane_distance = tl.where(nearer, distance, lane_distance)
            lane_code = tl.where(nearer, code, lane_code)
        distance = tl.min(lane_distance, axis=0)
        code = tl.min(tl.where(lane_distance == distance, lane_code, NO_CODE), axis=0)

        distance = tl.zeros((1,), tl.float64) + distance
        code = tl.zeros((1,), tl.int64) + code
        is_row = row >= 0

        finishes = True
        if SEVERAL_PARTS:
            mine = (head * num_rows + row) * parts
            tl.store(part_distances + mine + part, distance)
            tl.store(part_codes + mine + part, code)
            finishes = arrives_last(arrivals + head * num_rows + row, parts)
        if finishes:
            if SEVERAL_PARTS:
                mine = (head * num_rows + row) * parts
                distance, code, _ = merge_parts(part_distances, part_codes, mine, parts, is_row)
            is_nan = tl.zeros((1,), tl.int32)
            to_first = tl.zeros((1,), tl.float64)
            for start in range(0, dim, CHUNK):
                d = (start + tl.arange(0, CHUNK)).to(tl.int64)
                a = tl.load(z_row + d * z_stride, d < dim, other=0.0).to(tl.float64)
                e = tl.load(book + d * code_element, d < dim, other=0.0).to(tl.float64)
                is_nan |= tl.max((a != a).to(tl.int32), axis=0)
                to_first += tl.sum((a - e) * (a - e), axis=0)
            nowhere = code == NO_CODE
            code = tl.where(nowhere | (is_nan > 0), 0, code)
            distance = tl.where(nowhere, to_first, distance)
            distance = tl.where(is_nan > 0, float("nan"), distance)
            out = head * num_rows + row
            tl.store(indices + out, code)
            tl.store(distances + out, distance.to(distances.dtype.element_ty))
            if QUANTIZE:
                q_row = quantized + head * q_head
                q_row += row_offsets(row, q_inner, q_outer_stride, q_inner_stride)
                write_quantized(
                    q_row, q_stride, book + code * code_stride, code_element, is_row, dim, CHUNK
                )
