"""Measuring candidates: the distance from a row to a code that was named for it."""

import triton
import triton.language as tl


@triton.jit
def scaled_distance(z, z_stride, code, code_element, scale, wanted, dim, CHUNK: tl.constexpr):
    """float32 (scale |z - e|)^2 of each row's code [R]; relative error below (D + 8) 2^-23.

    z, code: pointers [R] to the rows and to the codes; rows that are not wanted are not read.
    """
    total = tl.zeros(z.shape, tl.float32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        mask = wanted[:, None] & (d < dim)[None, :]
        d = d.to(tl.int64)
        a = tl.load(z[:, None] + (d * z_stride)[None, :], mask, other=0.0).to(tl.float32)
        e = tl.load(code[:, None] + (d * code_element)[None, :], mask, other=0.0).to(tl.float32)
        difference = a * scale - e * scale  # first scaled: a difference may overflow
        total += tl.sum(difference * difference, axis=1)
    return total


@triton.jit
def exact_distance(z, z_stride, code, code_element, centre, wanted, dim, CHUNK: tl.constexpr):
    """float64 |z - e|^2 and |z - centre|^2 of each row [R], both sums of squares."""
    to_code = tl.zeros(z.shape, tl.float64)
    to_centre = tl.zeros(z.shape, tl.float64)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        mask = wanted[:, None] & (d < dim)[None, :]
        m = tl.load(centre + d, d < dim, other=0.0).to(tl.float64)
        d = d.to(tl.int64)
        a = tl.load(z[:, None] + (d * z_stride)[None, :], mask, other=0.0).to(tl.float64)
        e = tl.load(code[:, None] + (d * code_element)[None, :], mask, other=0.0).to(tl.float64)
        to_code += tl.sum((a - e) * (a - e), axis=1)
        a = tl.where(mask, a - m[None, :], 0.0)
        to_centre += tl.sum(a * a, axis=1)
    return to_code, to_centre
