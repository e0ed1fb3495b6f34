"""The bound: what a code must score to be as near as one that was measured."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.scan import UNSEEN


@triton.jit
def lowest_score(
    score, distance, scale, base, max_norm, max_rounding, has_outliers, rounding, row_norm, dim,
    START_COLUMNS: tl.constexpr,
    EPSILON: tl.constexpr, SUBNORMAL: tl.constexpr, NORMAL: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """What the packed score of a code must reach to be as near as a measured one, float32 [R].

    score, distance: of the measured code, in float32 before packing and in float64, unscaled. All
    other lengths are scaled. base: the number that is added to packed scores. rounding: |Z - Z'|;
    row_norm: |Z'|. docs/exactness.md has the derivation, and the names. float32 suffices: 1.02
    covers its roundings, too.
    """
    dims = 1.0 * dim  # of D = 1 Triton makes a constant, which `to` does not convert
    square = (distance * scale * scale).to(tl.float32)
    reach = 1.005 * (row_norm + rounding)
    triangle = reach + tl.sqrt(square) * (1 + 1e-6)
    radius = tl.minimum(max_norm, triangle)
    code_rounding = max_rounding + 1.2e-7 * radius
    code_rounding = tl.minimum(code_rounding, EPSILON * radius + SUBNORMAL * tl.sqrt(dims))
    z_rounding = rounding + 1.2e-7 * reach + 1e-17
    # The matrix unit aligns a step's products to the largest exponent that they may have, and there
    # it takes a subnormal number for the smallest normal one.
    # The step also adds the score's start, base - |E|^2 / 2, or the pieces that represent it.
    start = 1.001 * tl.maximum(base, 0.5 * radius * radius) + NORMAL
    aligned_to = (row_norm + NORMAL) * (radius + code_rounding + NORMAL) + start
    # 2^-22 for the matrix unit's additions, and 2^-24 for those of `score`.
    addition = (dims + 16) * 3.0e-7 * aligned_to
    if START_COLUMNS > 0:
        addition += SUBNORMAL  # the pieces of a start leave that much
    error = z_rounding * radius + row_norm * code_rounding + addition
    # The term in `square` covers the roundings of the float64 distances.
    lowest = base + score - 1.02 * error - (dims + 16) * 2.3e-16 * square - 1e-30
    # This covers the number of the tile in the low bits, and the rounding of this result.
    lowest -= 3.1e-5 * tl.abs(lowest)
    # Codes too large for packing have no score. That is right if the triangle inequality rules
    # them out.
    lowest = tl.where((has_outliers > 0) & (triangle >= 0.99 * LARGEST), UNSEEN, lowest)
    return tl.maximum(lowest, UNSEEN)
