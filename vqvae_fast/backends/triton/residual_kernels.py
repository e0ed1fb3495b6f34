"""All stages of a residual quantizer for a block of rows, and the rows that remain in doubt.

The residuals are stored where the quantized vectors will be: in z's type, rounded after each stage.
Only the program that owns the rows reads them, so they stay in its caches.

Rows, residuals and codes are contiguous, with zeros behind D. Strides and masks would need
registers in all phases, and none are left.
"""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.bound import lowest_score
from vqvae_fast.backends.triton.exact import load_elements
from vqvae_fast.backends.triton.measure import measure_group
from vqvae_fast.backends.triton.scan import (
    NO_KEY,
    UNSEEN,
    group_keys,
    load_scaled,
    pack_errors,
    round_rows,
    score_of,
    starts_of_tile,
    tile_of,
)
from vqvae_fast.backends.triton.write import NO_CODE, list_rows, take_nearer


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """float32 in a narrower type, to nearest, ties to even."""
    if dtype == tl.bfloat16:  # rounded by hand: Triton's interpreter truncates
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(dtype)


@triton.jit
def copy_rows(source, target, mask, dim, CHUNK: tl.constexpr):
    """source, target: pointers [R]. All of the program sees what was written."""
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        value = tl.load(source[:, None] + d[None, :], mask[:, None])
        tl.store(target[:, None] + d[None, :], value, mask[:, None])
    tl.debug_barrier()


@triton.jit
def subtract_codes(rows, code, mask, dim, CHUNK: tl.constexpr):
    """Rows less their codes, in place and rounded. rows, code: pointers [R]."""
    tl.debug_barrier()  # some may still read the rows
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        at = rows[:, None] + d[None, :]
        e = tl.load(code[:, None] + d[None, :], mask[:, None], other=0.0)
        left = tl.load(at, mask[:, None], other=0.0).to(tl.float32) - e.to(tl.float32)
        tl.store(at, round_to(left, rows.dtype.element_ty), mask[:, None])
    tl.debug_barrier()


@triton.jit
def write_sum_of_codes(
    quantized, indices, codebooks, book_size, stages, mask, dim, CHUNK: tl.constexpr,
):  # fmt: skip
    """Adds up each row's codes in the order of the stages. quantized, indices: pointers [R]."""
    dtype: tl.constexpr = quantized.dtype.element_ty
    tl.debug_barrier()  # other threads of this program wrote the indices
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        total = tl.zeros((quantized.shape[0], CHUNK), tl.float32)
        book = codebooks
        for q in range(stages):
            code = book + tl.load(indices + q, mask, other=0) * dim
            e = tl.load(code[:, None] + d[None, :], mask[:, None], other=0.0)
            total = round_to(total + e.to(tl.float32), dtype).to(tl.float32)
            book += book_size
        tl.store(quantized[:, None] + d[None, :], total.to(dtype), mask[:, None])


@triton.jit(do_not_specialize=["num_rows", "num_codes", "stages", "tiles"])
def residual_kernel(
    z, num_rows, codebooks, num_codes, dim, stages,
    packed, start, centre, scale_of_book, base, max_norm, max_rounding, has_outliers, tiles,
    indices, quantized, listed, num_listed,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CHECK_DIM: tl.constexpr,
    COPIES: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
    MEASURE_CHUNK: tl.constexpr,
    EPSILON: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    NORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """Searches, measures and subtracts, book after book; lists the rows that stay in doubt.

    The search is that of `scan` and `settle`: the groups, the slots and the bound are theirs. But
    it records two groups of each slot, and the third's score bounds the others. A row in doubt in
    any stage is computed again from its first, so there should be few.

    z: [N, BLOCK_DIM]; codebooks: [Q, K, BLOCK_DIM]; packed: [Q, tiles * BLOCK_CODES, BLOCK_DIM],
        from `prepare` as are the tensors behind it; indices: [N, Q]; quantized: [N, BLOCK_DIM].
    """
    SLOTS: tl.constexpr = BLOCK_CODES // GROUP
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    rows = quantized + row * dim
    copy_rows(z + row * dim, rows, is_row, dim, CHUNK)

    slots = tl.arange(0, SLOTS)
    lanes = tl.arange(0, BLOCK_CODES)
    column = tl.arange(0, BLOCK_DIM)
    book = codebooks
    settled = is_row
    # What a stage needs is made in it: hoisted, it would take up registers in all its phases.
    for q in tl.range(0, stages, disable_licm=True):
        middle = centre + q * BLOCK_DIM
        scale = tl.load(scale_of_book + q)
        fits, rounding, row_norm = pack_errors(
            rows, 1, middle, scale, BLOCK_DIM, dim, settled, None,
            False, 0, packed.dtype.element_ty, CHECK_DIM,
        )  # fmt: skip
        row_tile, _fits = round_rows(
            load_scaled(rows, 1, middle, scale, column, dim, is_row),
            packed.dtype.element_ty,
        )
        codes_ptrs = packed + lanes[:, None] * BLOCK_DIM + column[None, :]
        start_ptrs = start + tl.arange(0, COPIES * BLOCK_CODES) % BLOCK_CODES
        best = tl.full((BLOCK_ROWS, SLOTS), NO_KEY, tl.int32)
        second = tl.full((BLOCK_ROWS, SLOTS), NO_KEY, tl.int32)
        third = tl.full((BLOCK_ROWS, SLOTS), NO_KEY, tl.int32)
        for tile in tl.range(0, tiles, num_stages=NUM_STAGES):
            score = starts_of_tile(start_ptrs, BLOCK_ROWS, BLOCK_CODES, COPIES)
            score = tl.dot(row_tile, tl.trans(tl.load(codes_ptrs)), score)
            group = group_keys(score, tile, GROUP, SLOTS)
            loser = tl.minimum(best, group)
            best = tl.maximum(best, group)
            third = tl.maximum(third, tl.minimum(second, loser))
            second = tl.maximum(second, loser)
            codes_ptrs += BLOCK_CODES * BLOCK_DIM
            start_ptrs += BLOCK_CODES
        # Negative keys are not in order; such groups are only known not to score above 0.
        rest = score_of(tl.max(third, axis=1), 0.0)

        # Visit the groups that the bound leaves, from the highest score down.
        lift = tl.load(base + q)
        longest = tl.load(max_norm + q).to(tl.float32, bitcast=True)
        worst = tl.load(max_rounding + q).to(tl.float32, bitcast=True)
        outliers = tl.load(has_outliers + q)
        limit = tl.full((BLOCK_ROWS,), float("inf"), tl.float32)
        nearest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
        nearest_code = tl.full((BLOCK_ROWS,), NO_CODE, tl.int64)
        nearest_score = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
        lowest = tl.full((BLOCK_ROWS,), UNSEEN, tl.float32)
        key = tl.max(best, axis=1)
        wanted = fits & (key >= 0)
        while tl.max(wanted.to(tl.int32), axis=0) > 0:
            slot = tl.argmax(best, axis=1)
            first_code = tile_of(key).to(tl.int64) * BLOCK_CODES + slot
            limit, nearest, nearest_code, nearest_score = measure_group(
                rows, 1, book, dim, 1, num_codes, dim, middle, scale, first_code, wanted,
                limit, nearest, nearest_code, nearest_score, GROUP, SLOTS,
                MEASURE_CHUNK, MEASURE_CHUNK, False,
            )  # fmt: skip
            bound = lowest_score(
                nearest_score, nearest, scale, lift, longest, worst, outliers, rounding, row_norm,
                dim, 0, EPSILON, SUBNORMAL, NORMAL, LARGEST,
            )  # fmt: skip
            lowest = tl.where(nearest_code != NO_CODE, bound, UNSEEN)
            taken = slots[None, :] == slot[:, None]
            best = tl.where(taken, second, best)
            second = tl.where(taken, NO_KEY, second)
            key = tl.max(best, axis=1)
            wanted = fits & (score_of(key, UNSEEN) >= lowest) & (rest < lowest)

        settled = fits & (rest < lowest) & (nearest_code != NO_CODE)
        tl.store(indices + row * stages + q, nearest_code, settled)
        subtract_codes(rows, book + nearest_code * dim, settled, dim, CHUNK)
        book += num_codes * dim
        packed += tiles * (BLOCK_CODES * BLOCK_DIM)
        start += tiles * BLOCK_CODES

    write_sum_of_codes(
        rows, indices + row * stages, codebooks, num_codes * dim, stages, settled,
        dim, CHUNK,
    )  # fmt: skip
    list_rows(listed, 1, num_listed, row, is_row & (settled == 0))


@triton.jit(do_not_specialize=["num_codes", "stages"])
def residual_exact_kernel(
    z, codebooks, num_codes, dim, stages, indices, quantized, listed, num_listed,
    BLOCK_CODES: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Computes the listed rows from their first stage on: every code in float64, a row at a time.

    There are few such rows, and the stages of a row must follow one another.
    """
    num_codes = num_codes.to(tl.int64)
    mask = tl.full((1,), True, tl.int1)
    for item in range(tl.program_id(0), tl.load(num_listed), tl.num_programs(0)):
        row = tl.load(listed + item + tl.arange(0, 1))
        rows = quantized + row * dim
        copy_rows(z + row * dim, rows, mask, dim, CHUNK)
        book = codebooks
        for q in range(stages):
            nearest = tl.full((BLOCK_CODES,), float("inf"), tl.float64)
            nearest_code = tl.full((BLOCK_CODES,), NO_CODE, tl.int64)
            is_nan = tl.zeros((1,), tl.int32)
            for first in range(0, num_codes, BLOCK_CODES):
                code = first + tl.arange(0, BLOCK_CODES).to(tl.int64)
                usable = code < num_codes
                distance = tl.zeros((BLOCK_CODES,), tl.float64)
                e_rows = book + code * dim
                is_code = usable
                for start in range(0, dim, STEP):
                    d = start + tl.arange(0, STEP)
                    a = load_elements(rows, 1, d, mask, dim)
                    e = load_elements(e_rows, 1, d, is_code, dim)
                    usable &= tl.min((tl.abs(e) < float("inf")).to(tl.int32), axis=1) > 0
                    is_nan |= tl.max((a != a).to(tl.int32), axis=1)
                    distance += tl.sum((a - e) * (a - e), axis=1)
                nearest, nearest_code = take_nearer(distance, code, usable, nearest, nearest_code)
            least = tl.min(nearest, axis=0)
            chosen = tl.min(tl.where(nearest == least, nearest_code, NO_CODE), axis=0)
            chosen = tl.where((is_nan > 0) | (chosen == NO_CODE), 0, chosen)
            tl.store(indices + row * stages + q, chosen)
            subtract_codes(rows, book + chosen * dim, mask, dim, CHUNK)
            book += num_codes * dim
        write_sum_of_codes(
            rows, indices + row * stages, codebooks, num_codes * dim, stages, mask, dim, CHUNK,
        )  # fmt: skip
