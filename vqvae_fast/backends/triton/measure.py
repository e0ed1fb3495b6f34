"""Measures candidates: the distances from rows to the codes of the group that each row names."""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.write import NO_CODE, is_nearer


@triton.jit
def scaled_distances(
    z, z_stride, codes, code_element, scale, is_row, is_code, dim, CHUNK: tl.constexpr
):
    """float32 (scale |z - e|)^2 of each row and its codes [R, G], error below (D + 8) 2^-23 of it.

    z, codes: pointers [R] to the rows and [R, G] to the codes; is_row, is_code: which are read.
    """
    total = tl.zeros((codes.shape[0], codes.shape[1], CHUNK), tl.float32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = (d < dim)[None, None, :]
        d = d.to(tl.int64)[None, None, :]
        a = tl.load(z[:, None, None] + d * z_stride, is_row[:, None, None] & inside, other=0.0)
        e = tl.load(codes[:, :, None] + d * code_element, is_code[:, :, None] & inside, other=0.0)
        # First scaled, which is exact: a difference may overflow.
        difference = a.to(tl.float32) * scale - e.to(tl.float32) * scale
        total += difference * difference
    return tl.sum(total, axis=2)


@triton.jit
def scores_of_codes(
    z, z_stride, codes, code_element, centre, scale, is_row, is_code, dim, CHUNK: tl.constexpr
):
    """float32 E.(Z - E / 2) of each row and its codes [R, G], before they are packed.

    z, codes, is_row, is_code: as for `scaled_distances`.
    """
    total = tl.zeros((codes.shape[0], codes.shape[1], CHUNK), tl.float32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = (d < dim)[None, None, :]
        middle = (tl.load(centre + d, d < dim, other=0.0) * scale)[None, None, :]
        d = d.to(tl.int64)[None, None, :]
        mask = is_code[:, :, None] & inside
        a = tl.load(z[:, None, None] + d * z_stride, is_row[:, None, None] & inside, other=0.0)
        e = tl.load(codes[:, :, None] + d * code_element, mask, other=0.0)
        a = a.to(tl.float32) * scale - middle
        e = e.to(tl.float32) * scale - middle
        total += tl.where(mask, e * (a - 0.5 * e), 0.0)
    return tl.sum(total, axis=2)


@triton.jit
def exact_distance(
    z, z_stride, code, code_element, centre, scale, wanted, dim, CHUNK: tl.constexpr
):
    """float64 |z - e|^2 of each row's code [R], and that code's score, in float32.

    The score is E.(Z - E / 2), of the centred and scaled vectors before they are packed.
    """
    distance = tl.zeros((z.shape[0], CHUNK), tl.float64)
    score = tl.zeros((z.shape[0], CHUNK), tl.float32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        mask = wanted[:, None] & (d < dim)[None, :]
        middle = (tl.load(centre + d, d < dim, other=0.0) * scale)[None, :]
        d = d.to(tl.int64)
        a = tl.load(z[:, None] + (d * z_stride)[None, :], mask, other=0.0)
        e = tl.load(code[:, None] + (d * code_element)[None, :], mask, other=0.0)
        difference = a.to(tl.float64) - e.to(tl.float64)
        distance += difference * difference
        a = a.to(tl.float32) * scale - middle
        e = e.to(tl.float32) * scale - middle
        score += tl.where(mask, e * (a - 0.5 * e), 0.0)
    return tl.sum(distance, axis=1), tl.sum(score, axis=1)


@triton.jit
def are_equal(codes, code, code_element, is_code, dim, CHUNK: tl.constexpr):
    """Which of the codes [R, G] have all elements of the row's `code` [R]; all are pointers."""
    differ = tl.zeros((codes.shape[0], codes.shape[1], CHUNK), tl.int32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        mask = is_code[:, :, None] & (d < dim)[None, None, :]
        d = d.to(tl.int64)[None, None, :] * code_element
        e = tl.load(codes[:, :, None] + d, mask, other=0.0)
        other = tl.load(tl.broadcast_to(code[:, None, None] + d, mask.shape), mask, other=0.0)
        differ |= (e != other).to(tl.int32)
    return is_code & (tl.max(differ, axis=2) == 0)


@triton.jit
def widened(distance, dim):
    """The largest float32 distance of a code that may be as near as this one."""
    return distance * (1 + (dim + 16) * 2.4e-7) + dim * 1e-37


@triton.jit
def measure_group(
    z_rows, z_stride, book, code_stride, code_element, num_codes, dim, centre, scale,
    first_code, wanted, limit, nearest, nearest_code, nearest_score,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr, GROUP_CHUNK: tl.constexpr,
    COPIES: tl.constexpr,
):  # fmt: skip
    """Measures a group for each wanted row: its codes are first_code + i SLOTS.

    All codes are measured in float32, whose error is relative. Those that float32 cannot
    distinguish from the nearest so far are measured in float64; with COPIES, only if their elements
    differ from its elements.

    limit: the float32 distance, scaled, that the answer cannot exceed.
    nearest, nearest_code, nearest_score: the nearest code so far, or infinity and NO_CODE.
    Returns the last four as the group leaves them.
    """
    code = first_code[:, None] + (tl.arange(0, GROUP) * SLOTS)[None, :]
    codes = book + code * code_stride
    is_code = wanted[:, None] & (code < num_codes)
    near = scaled_distances(
        z_rows, z_stride, codes, code_element, scale, wanted, is_code, dim, GROUP_CHUNK
    )
    # NaN and infinity, of codes that must not be chosen, compare false.
    left = is_code & (near < float("inf"))
    least = tl.min(tl.where(left, near, float("inf")), axis=1)
    limit = tl.minimum(limit, widened(least, dim))
    left &= near <= limit[:, None]
    while tl.max(tl.max(left.to(tl.int32), axis=1), axis=0) > 0:
        if COPIES:
            known = left & (nearest_code != NO_CODE)[:, None]
            if tl.max(tl.max(known.to(tl.int32), axis=1), axis=0) > 0:
                # The same elements have the same distance, to the bit.
                so_far = book + tl.where(nearest_code != NO_CODE, nearest_code, 0) * code_stride
                copies = are_equal(codes, so_far, code_element, known, dim, GROUP_CHUNK)
                first_copy = tl.min(tl.where(copies, code, NO_CODE), axis=1)
                nearest_code = tl.minimum(nearest_code, first_copy)
                left &= copies == 0
        chosen = tl.min(tl.where(left, code, NO_CODE), axis=1)
        is_chosen = chosen != NO_CODE
        if tl.max(is_chosen.to(tl.int32), axis=0) > 0:
            at = book + tl.where(is_chosen, chosen, 0) * code_stride
            distance, score = exact_distance(
                z_rows, z_stride, at, code_element, centre, scale, is_chosen, dim, CHUNK
            )
            nearer = is_chosen & is_nearer(distance, chosen, nearest, nearest_code)
            nearest = tl.where(nearer, distance, nearest)
            nearest_code = tl.where(nearer, chosen, nearest_code)
            nearest_score = tl.where(nearer, score, nearest_score)
            left &= code != chosen[:, None]
    return limit, nearest, nearest_code, nearest_score
