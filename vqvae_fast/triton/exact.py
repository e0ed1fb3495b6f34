"""The search without a filter: every code is measured in float64.

For the rows that the bound could not settle, and for float64 input.
"""

import triton
import triton.language as tl

from vqvae_fast.triton.rows import aligned, row_offsets
from vqvae_fast.triton.write import NO_CODE, is_nearer, take_nearer, write_quantized


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of `expected` here; it sees what all others wrote."""
    tl.debug_barrier()  # every thread's writes before the one thread's release
    return tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1


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
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A fixed number of programs share out what there is, without the host knowing how much.

    Where there are fewer blocks of rows than programs, several share the codes of a block; the
    last of them to finish merges.

    arrivals: [H, most_items] zeros; part_distances, part_codes: [H, most_items, BLOCK_ROWS]. They
        serve shared blocks alone, and those come to no more items than programs.
    """
    head = tl.program_id(1).to(tl.int64)
    book = codebook + head * aligned(book_stride, ALIGNED)
    num_codes = num_codes.to(tl.int64)
    programs = tl.num_programs(0)
    count = num_rows if ALL_ROWS else tl.load(num_listed + head)
    blocks = tl.cdiv(count, BLOCK_ROWS)
    parts = tl.maximum(programs // tl.maximum(blocks, 1), 1)
    parts = tl.minimum(parts, tl.cdiv(num_codes, BLOCK_CODES).to(tl.int32))
    part_size = tl.cdiv(num_codes, parts)
    for item in range(tl.program_id(0), blocks * parts, programs):
        block, part = item // parts, item % parts
        entry = tl.arange(0, BLOCK_ROWS).to(tl.int64) + block * BLOCK_ROWS
        is_row = entry < count
        row = entry
        if not ALL_ROWS:
            row = tl.load(listed + head * num_rows + entry, is_row, other=0)
        z_rows = z + head * aligned(z_head, ALIGNED)
        z_rows += row_offsets(row, z_inner, z_outer_stride, z_inner_stride, ALIGNED)

        lane_distance = tl.full((BLOCK_ROWS, BLOCK_CODES), float("inf"), tl.float64)
        lane_code = tl.full((BLOCK_ROWS, BLOCK_CODES), NO_CODE, tl.int64)
        last = tl.minimum(num_codes, (part + 1) * part_size)
        for first in range(part * part_size, last, BLOCK_CODES):
            code = first + tl.arange(0, BLOCK_CODES)
            is_code = code < last
            usable = is_code
            distance = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float64)
            for start in range(0, dim, STEP):
                d = start + tl.arange(0, STEP)
                valid = is_code[:, None] & (d < dim)[None, :]
                a = load_elements(z_rows, z_stride, d, is_row, dim)
                e_ptrs = (book + code * code_stride)[:, None]
                e_ptrs += (d.to(tl.int64) * code_element)[None, :]
                e = tl.load(e_ptrs, valid, other=0.0).to(tl.float64)
                usable &= tl.min((tl.abs(e) < float("inf")).to(tl.int32), axis=1) > 0
                difference = a[:, None, :] - e[None, :, :]
                distance += tl.sum(difference * difference, axis=2)
            lane_distance, lane_code = take_nearer(
                distance, code[None, :], usable[None, :], lane_distance, lane_code
            )
        distance = tl.min(lane_distance, axis=1)
        code = tl.min(tl.where(lane_distance == distance[:, None], lane_code, NO_CODE), axis=1)

        finishes = parts == 1
        if parts > 1:
            mine = (head * most_items + item) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            tl.store(part_distances + mine, distance)
            tl.store(part_codes + mine, code)
            finishes = arrives_last(arrivals + head * most_items + block, parts)
        if finishes:
            if parts > 1:
                all_parts = (head * most_items + block * parts) * BLOCK_ROWS
                for i in range(parts):
                    # From L2, where the others' results are: never from this SM's own cache.
                    at = all_parts + i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
                    d = tl.load(part_distances + at, cache_modifier=".cg")
                    k = tl.load(part_codes + at, cache_modifier=".cg")
                    nearer = is_nearer(d, k, distance, code)
                    distance = tl.where(nearer, d, distance)
                    code = tl.where(nearer, k, code)
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
