"""The end of a search: partial results made one, results written, doubtful rows listed."""

import triton
import triton.language as tl

# Stands where no code could be chosen; it loses against every index.
NO_CODE = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def is_nearer(distance, code, than_distance, than_code):
    """Whether the first of two candidates wins: by distance, then by the lower index."""
    return (distance < than_distance) | ((distance == than_distance) & (code < than_code))


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of `expected` to come here; it sees what all others wrote.

    counter: pointer [1].
    """
    tl.debug_barrier()  # every thread's writes before the one thread's release
    return tl.max(tl.atomic_add(counter, 1, sem="acq_rel"), axis=0) == expected - 1


@triton.jit
def merge_parts(part_distances, part_codes, part, parts, mask):
    """The nearest of each row's partial results. part: first element of each row's, [R]."""
    distance = tl.full(part.shape, float("inf"), tl.float64)
    code = tl.full(part.shape, NO_CODE, tl.int64)
    settled = mask
    for i in range(parts):
        # From L2, where the other programs' results are: never from this SM's own cache.
        d = tl.load(part_distances + part + i, mask, other=0.0, cache_modifier=".cg")
        k = tl.load(part_codes + part + i, mask, other=0, cache_modifier=".cg")
        settled &= k >= 0
        nearer = is_nearer(d, k, distance, code)
        distance, code = tl.where(nearer, d, distance), tl.where(nearer, k, code)
    return distance, code, settled


@triton.jit
def write_quantized(
    quantized, q_stride, code, code_element, mask, dim, CHUNK: tl.constexpr
):
    """Copies each row's code. quantized, code: pointers [R]."""
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        valid = mask[:, None] & (d < dim)[None, :]
        d = d.to(tl.int64)
        e = tl.load(code[:, None] + (d * code_element)[None, :], valid)
        tl.store(quantized[:, None] + (d * q_stride)[None, :], e, valid)
