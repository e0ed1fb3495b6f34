"""Decides between candidates, and writes the chosen codes."""

import triton
import triton.language as tl

# The index of a row that has no code yet; it loses against every index.
NO_CODE = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def is_nearer(distance, code, than_distance, than_code):
    """Whether the first of two candidates wins: by distance, then by the lower index."""
    return (distance < than_distance) | ((distance == than_distance) & (code < than_code))


@triton.jit
def take_nearer(distance, code, usable, lane_distance, lane_code):
    """Each lane's nearest usable code so far; codes come in rising order.

    The first usable code stays unless one is nearer, also if its distance is infinite.
    """
    nearer = (distance < lane_distance) | (lane_code == NO_CODE)
    nearer &= usable
    return tl.where(nearer, distance, lane_distance), tl.where(nearer, code, lane_code)


@triton.jit
def list_rows(listed, step, num_listed, row, doubtful):
    """Appends the doubtful rows to a list, in no particular order of blocks.

    step: 1, or -1 for a list that grows downwards.
    """
    count = tl.sum(doubtful.to(tl.int32), axis=0)
    if count > 0:
        place = tl.atomic_add(num_listed, count, sem="relaxed")
        place += tl.cumsum(doubtful.to(tl.int32), axis=0) - 1
        tl.store(listed + place * step, row, doubtful)


@triton.jit
def write_quantized(quantized, q_stride, code, code_element, mask, dim, CHUNK: tl.constexpr):
    """Copies each row's code. quantized, code: pointers [R]."""
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        valid = mask[:, None] & (d < dim)[None, :]
        d = d.to(tl.int64)
        e = tl.load(code[:, None] + (d * code_element)[None, :], valid)
        tl.store(quantized[:, None] + (d * q_stride)[None, :], e, valid)
