"""What decides between candidates, and what writes the chosen codes."""

import triton
import triton.language as tl

# Stands where no code could be chosen; it loses against every index.
NO_CODE = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def is_nearer(distance, code, than_distance, than_code):
    """Whether the first of two candidates wins: by distance, then by the lower index."""
    return (distance < than_distance) | ((distance == than_distance) & (code < than_code))


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
