"""The codebook as the search reads it: centred, scaled, rounded to the matrix unit's type.

Any centre and any power of two as scale give the right answer (docs/exactness.md); good ones make
the bound tight. Both come from nine codes and from medians, so that one huge code spoils neither;
the scale also leaves room for the rows.
"""

import torch
import triton
import triton.language as tl

from vqvae_fast.backends.triton.configurations import registers
from vqvae_fast.backends.triton.launch import Plan
from vqvae_fast.backends.triton.packed_form import Prepared
from vqvae_fast.backends.triton.rows import (
    Books,
    Rows,
    aligned,
    row_offsets,
    widest_alignment,
)

# The relative and the absolute error of packing, the smallest normal number, and the number from
# which on packing is impossible.
ROUNDING = {
    torch.float16: {
        "EPSILON": 2.0**-11 * 1.001,
        "SUBNORMAL": 2.0**-25,
        "NORMAL": 2.0**-14,
        "LARGEST": 65504.0,
    },
    torch.float32: {
        "EPSILON": 2.0**-23,
        "SUBNORMAL": 2.0**-149,
        "NORMAL": 2.0**-126,
        "LARGEST": 1e13,
    },
}
# A thread takes the registers that it needs. With Triton 3.5 and 3.6 the assembler would otherwise
# spill some to make room for one more program an SM.
_REGISTERS = 255
# Below every score that two packed vectors can have, and far from float32's limit.
NEVER_CHOSEN = tl.constexpr(-1e30)
# The least base, where a code lies at the centre, and the largest, where no sampled code is finite.
LEAST_BASE = tl.constexpr(2.0**-10)
LARGEST_BASE = tl.constexpr(2.0**10)
# The scale leaves most rows below 2^(1 + this): a row may be 16 times as large before float16 ends.
ROWS_BELOW = tl.constexpr(11)
# The same where a code's start must fit float16, too: no nearest code should have half its square
# beyond 65504.
ROWS_BELOW_WITH_START = tl.constexpr(5)
# The largest number of float16; a start below its negative does not fit the first piece.
LARGEST_PIECE = tl.constexpr(65504.0)


def prepare(
    plan: Plan,
    codebook: Books,
    z: Rows,
    z_head: int,
    prepared: Prepared,
    *,
    block_dim: int,
    start_columns: int,
    codes_at_once: int,
) -> None:
    """Plans the packing of all books, which the search then reads.

    Args:
        plan: gets the launch.
        codebook: [H, K, D], any strides.
        z: the rows of the first book.
        z_head: from there to the rows of the next book.
        prepared: where the results go; its last three are zeros.
        block_dim: elements of a code at a time, a power of two that divides ``prepared.columns``.
        start_columns: columns behind D that hold what a code's score starts at, or 0.
        codes_at_once: codes that a program packs.
    """
    heads, num_codes, dim = codebook.shape
    aligned_codes = widest_alignment(dim, *codebook.strides[:2])
    aligned_rows = widest_alignment(dim, z, z_head)
    if block_dim > 128 and min(aligned_codes, aligned_rows) == 1:  # addresses need registers
        codes_at_once //= 2
    plan.launch(
        prepare_kernel,
        (triton.cdiv(prepared.rows, codes_at_once), heads),
        codebook.start,
        *codebook.strides,
        num_codes,
        dim,
        *z.arguments,
        z_head,
        z.num_rows,
        *prepared.pointers,
        prepared.rows,
        prepared.columns // block_dim,
        ALIGNED=aligned_codes,
        Z_ALIGNED=aligned_rows,
        BLOCK_CODES=codes_at_once,
        BLOCK_DIM=block_dim,
        START_COLUMNS=start_columns,
        num_warps=4,
        **registers(_REGISTERS),
    )


@triton.jit
def median_of_3(a, b, c):
    """The middle one, elementwise."""
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))


@triton.jit
def sample(book, stride_code, stride_dim, num_codes, i, d, dim):
    """Elements d of the i-th of nine evenly spaced codes, as float32; 0 where not finite."""
    code = (num_codes - 1).to(tl.int64) * i // 8
    offset = code * stride_code + d.to(tl.int64) * stride_dim
    value = tl.load(book + offset, mask=d < dim, other=0.0).to(tl.float32)
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def centre_of(book, stride_code, stride_dim, num_codes, d, dim):
    """The median of three medians of three codes, elements d."""
    a = median_of_3(
        sample(book, stride_code, stride_dim, num_codes, 0, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 3, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 6, d, dim),
    )
    b = median_of_3(
        sample(book, stride_code, stride_dim, num_codes, 1, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 4, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 7, d, dim),
    )
    c = median_of_3(
        sample(book, stride_code, stride_dim, num_codes, 2, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 5, d, dim),
        sample(book, stride_code, stride_dim, num_codes, 8, d, dim),
    )
    return median_of_3(a, b, c)


@triton.jit
def scale_of(magnitude, target: tl.constexpr):
    """The power of two that brings a magnitude into [2^target, 2^(target + 1))."""
    exponent = (magnitude.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(254 + target - exponent, 1), 254)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def ranked(values, rank, is_value):
    """The value of [16] that has `rank` values below it; equal values are all chosen, or none."""
    below = (values[None, :] < values[:, None]) & is_value[None, :]
    chosen = is_value & (tl.sum(below.to(tl.int32), axis=1) <= rank)
    return tl.max(tl.where(chosen, values, 0.0), axis=0)


@triton.jit
def sampled_rows(num_rows):
    """16 evenly spaced rows."""
    return (num_rows - 1).to(tl.int64) * tl.arange(0, 16) // 15


@triton.jit
def scale_and_base(
    book, stride_code, stride_dim, num_codes, z_rows, z_stride, dim, chunks,
    BLOCK_DIM: tl.constexpr, EXPONENT: tl.constexpr,
):  # fmt: skip
    """The power of two for a book and for rows like those at z_rows [16], and the book's base."""
    # The spreads of nine codes: the largest distance of an element to the centre, and the mean one.
    spread = tl.zeros((16,), tl.float32)
    mean_spread = tl.zeros((16,), tl.float32)
    which = tl.arange(0, 16)
    # The reach of the rows: the magnitude that a quarter of them exceeds.
    reach_of_rows = tl.zeros((16,), tl.float32)
    for chunk in range(chunks):
        d = chunk * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
        middle = centre_of(book, stride_code, stride_dim, num_codes, d, dim)
        for i in tl.static_range(9):
            value = sample(book, stride_code, stride_dim, num_codes, i, d, dim)
            reach = tl.abs(value - middle)
            spread = tl.where(which == i, tl.maximum(spread, tl.max(reach, axis=0)), spread)
            mean_spread += tl.where(which == i, tl.sum(reach / dim, axis=0), 0.0)
        at = z_rows[:, None] + (d.to(tl.int64) * z_stride)[None, :]
        reaches = tl.load(at, mask=(d < dim)[None, :], other=0.0).to(tl.float32)
        reaches = tl.abs(reaches - middle[None, :])
        reaches = tl.where((reaches < float("inf")) & (d < dim)[None, :], reaches, 0.0)
        reach_of_rows = tl.maximum(reach_of_rows, tl.max(reaches, axis=1))
    median = ranked(spread, 4, which < 9)
    median = tl.where(median > 0, median, tl.max(spread, axis=0))
    # The scale is so low that latents may be far larger than codes before they exceed float16's
    # 65504. It is still lower if they are as large as beside a large codebook that was just
    # initialised.
    power = tl.where(median > 0, scale_of(median, -4), 1.0)
    power = tl.minimum(power, scale_of(ranked(reach_of_rows, 11, which < 16), EXPONENT))
    # The smallest of the nine: a code's square norm is at most D times the product of its spreads.
    # The scores of unused codes, which may be far larger than all others, need not be positive.
    square = dim * (spread * power) * (mean_spread * power)
    square = tl.where((which < 9) & (square < LARGEST_BASE), square, LARGEST_BASE)
    return power, tl.maximum(tl.min(square, axis=0), LEAST_BASE)


@triton.jit(
    do_not_specialize=[
        "stride_head",
        "num_codes",
        "rows",
        "chunks",
        "z_inner",
        "z_outer_stride",
        "z_inner_stride",
        "z_head",
        "num_rows",
    ],
    do_not_specialize_on_alignment=["stride_dim", "z_stride"],
)
def prepare_kernel(
    codebook,
    stride_head,
    stride_code,
    stride_dim,
    num_codes,
    dim,
    z,
    z_inner,
    z_outer_stride,
    z_inner_stride,
    z_stride,
    z_head,
    num_rows,
    codes,
    start,
    centre,
    scale,
    base,
    max_norm,
    max_rounding,
    has_outliers,
    rows,
    chunks,
    ALIGNED: tl.constexpr,
    Z_ALIGNED: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    START_COLUMNS: tl.constexpr,
):
    """Packs a block of codes; the first program of a book also writes the numbers of the book."""
    head = tl.program_id(1).to(tl.int64)
    book = codebook + head * aligned(stride_head, ALIGNED)
    num_codes = num_codes.to(tl.int64)

    z_rows = z + head * aligned(z_head, Z_ALIGNED)
    z_rows += row_offsets(
        sampled_rows(num_rows), z_inner, z_outer_stride, z_inner_stride, Z_ALIGNED
    )
    power, base_of_book = scale_and_base(
        book, stride_code, stride_dim, num_codes, z_rows, z_stride, dim, chunks,
        BLOCK_DIM, ROWS_BELOW if START_COLUMNS == 0 else ROWS_BELOW_WITH_START,
    )  # fmt: skip

    code = tl.program_id(0).to(tl.int64) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
    columns = chunks * BLOCK_DIM
    norm = tl.zeros((BLOCK_CODES,), tl.float32)
    rounding = tl.zeros((BLOCK_CODES,), tl.float32)
    packable = code < num_codes
    finite = code < num_codes
    for chunk in range(chunks):
        d = chunk * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
        middle = centre_of(book, stride_code, stride_dim, num_codes, d, dim)
        value = tl.load(
            book + code[:, None] * stride_code + d.to(tl.int64)[None, :] * stride_dim,
            mask=(code < num_codes)[:, None] & (d < dim)[None, :],
            other=0.0,
        ).to(tl.float32)
        finite &= tl.min((tl.abs(value) < float("inf")).to(tl.int32), axis=1) > 0
        # First scaled, which is exact: the difference of the largest numbers overflows.
        value = tl.where((d < dim)[None, :], value * power - (middle * power)[None, :], 0.0)
        packed = value.to(codes.dtype.element_ty)
        fits = tl.abs(packed.to(tl.float32)) < float("inf")  # false for NaN, too
        chunk_fits = tl.min(fits.to(tl.int32), axis=1) > 0
        packable &= chunk_fits
        norm += tl.sum(value * value, axis=1)
        loss = value - packed.to(tl.float32)
        rounding += tl.sum(loss * loss, axis=1)
        tl.store(
            codes + (head * rows + code[:, None]) * columns + d[None, :],
            tl.where((chunk_fits & (code < num_codes))[:, None], packed, 0.0),
            mask=(code < rows)[:, None] & ((d < dim) | (d >= dim + START_COLUMNS))[None, :],
        )
        if tl.program_id(0) == 0:
            tl.store(centre + head * columns + d, middle)
    # Squares that overflow float32 (in the IEEE variant alone) are not packable either.
    packable &= norm < 1e28
    code_start = base_of_book - 0.5 * norm
    if START_COLUMNS == 0:
        code_start = tl.where(packable, code_start, NEVER_CHOSEN)
        tl.store(start + head * rows + code, code_start, code < rows)
    else:
        # Codes too far away for one piece score too high, which rules none out.
        code_start = tl.maximum(code_start, -LARGEST_PIECE)
        code_start = tl.where(packable, code_start, -START_COLUMNS * LARGEST_PIECE)
        for i in tl.static_range(START_COLUMNS):
            piece = tl.maximum(code_start, -LARGEST_PIECE).to(codes.dtype.element_ty)
            tl.store(codes + (head * rows + code) * columns + dim + i, piece, code < rows)
            code_start -= piece.to(tl.float32)
    # The order of the bits of floats that are not negative is that of the floats.
    longest = tl.max(tl.where(packable, tl.sqrt(norm), 0.0), axis=0)
    tl.atomic_max(max_norm + head, longest.to(tl.int32, bitcast=True), sem="relaxed")
    worst = tl.max(tl.where(packable, tl.sqrt(rounding), 0.0), axis=0)
    tl.atomic_max(max_rounding + head, worst.to(tl.int32, bitcast=True), sem="relaxed")
    outliers = tl.max((finite & (packable == 0)).to(tl.int32), axis=0)
    tl.atomic_max(has_outliers + head, outliers, sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(scale + head, power)
        tl.store(base + head, base_of_book)
