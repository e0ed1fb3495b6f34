"""Residual quantization: all stages in one launch.

Three kernels: `prepare` packs all books at once, unless that was done before (`kept_books`),
`residual` takes a block of rows through all stages, and `residual_exact` redoes the few rows that
some stage's bound did not settle. The host waits for none of them. A row's residual is stored where
its quantized vector will be, so it costs no memory, and only the program that owns the row reads
it, which keeps it in the caches.

The kernels have no registers left for strides and masks. Rows that are not contiguous, or do not
have 16, 32, 64 or 128 elements, are copied before and after them, a bounded number of rows at a
time.

It serves if a block's packed rows fit the chip (D <= 128) and a tile's number fits the low bits of
a score (K <= 32768, 16384 for D > 64), for any Q, but not for float64. Otherwise each stage is a
search.

Limit: 2 N K D Q operations on the matrix unit; N D read and written once, N Q indices of 8 bytes,
the books once as they are (4 K D Q bytes in float32) and packed (2 K D Q, which every 64 rows read
from L2 again); and 8 codes of 4 D bytes that each row and stage measures, from L2. Stage by stage,
seven launches a search (a fill and six kernels), and a gather, a subtraction and an addition, make
about 10 Q launches of some 3 us each if they are this small. This is an estimate for an H100 (at 64
rows a block 75 and 38 of its 132 SMs are busy), which has not been measured yet:

    N, K, D, Q                    operations   one launch   stage by stage
    4800, 1024, 128, 8 (EnCodec)       10 G        0.1 ms           0.2 ms
    2400, 1024, 8, 9 (DAC)            0.4 G       0.08 ms           0.3 ms

DAC's rows are copied, in five more launches. The gain comes from the launches. If a stage is long
and the blocks are few, there may be none, because a search of one stage can divide the codes among
all SMs.
"""

import torch
import triton
from torch import Tensor

from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.backends.triton.configurations import (
    Configuration,
    copies_of_starts,
    multiprocessors,
    registers,
    residual_configuration,
    support_configuration,
)
from vqvae_fast.backends.triton.kept_books import (
    PACKED_DTYPE,
    form_of_books,
    padding_keeps_form,
    readable_bytes,
)
from vqvae_fast.backends.triton.launch import Plan, Pointer, Region, kept
from vqvae_fast.backends.triton.packed_form import PackedForm
from vqvae_fast.backends.triton.prepare import ROUNDING, prepare
from vqvae_fast.backends.triton.residual_kernels import residual_exact_kernel, residual_kernel
from vqvae_fast.backends.triton.rows import books_at, end_to_end, rows_at
from vqvae_fast.backends.triton.scan import TILES_PER_PART
from vqvae_fast.backends.triton.search import nearest_code

# Programs an SM that share out the rows in doubt.
_EXACT_PROGRAMS_PER_SM = 2
# The place of the packed codes among the tensors of a call, behind those that every call has.
_KEPT_BYTES = 5
# Elements of the rows that are copied at a time, unless one item of z has more.
_COPIED_ELEMENTS = 1 << 25


def residual_nearest_code(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    return residual_nearest_packed_code(z, codebooks, None)


def residual_nearest_packed_code(
    z: Tensor, codebooks: Tensor, packed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The op of this name, where None packs the books."""
    config = fitting_configuration(z, codebooks)
    if config is None:
        return reference.residual_nearest_code(z, codebooks, nearest_code=nearest_code)
    if z.dim() == 1:
        indices, quantized = residual_nearest_packed_code(z[None], codebooks, packed)
        return indices[0], quantized[0]
    indices = z.new_empty((*z.shape[:-1], len(codebooks)), dtype=torch.int64)
    quantized = torch.empty_like(z)
    if z.numel():
        books = end_to_end(codebooks, config.block_dim)
        kept_bytes = None
        # The packed form of short rows has the starts of the scores among the codes, where the
        # residual kernel does not read them.
        if packed is not None and padding_keeps_form(codebooks, books):
            kept_bytes = readable_bytes(packed, codebooks)
        _slabs(z, indices, quantized, books, config, kept_bytes)
    return indices, quantized


def fitting_configuration(z: Tensor, codebooks: Tensor) -> Configuration | None:
    """The configuration with which all stages run in one launch, None if they do not fit one."""
    config = residual_configuration(z.shape[-1])
    if config is None or z.dtype == torch.float64:
        return None
    tiles = triton.cdiv(codebooks.shape[1], config.block_codes)
    return config if tiles <= TILES_PER_PART.value else None


def _slabs(
    z: Tensor,
    indices: Tensor,
    quantized: Tensor,
    codebooks: Tensor,
    config: Configuration,
    kept_bytes: Tensor | None,
) -> None:
    """All stages, for as many items of z at a time as may be copied."""
    items, dim, columns = len(z), z.shape[-1], config.block_dim
    if dim < columns or not z.is_contiguous():
        items = max(1, _COPIED_ELEMENTS // (z[0].numel() // dim * columns))
    for first in range(0, len(z), items):
        some = slice(first, first + items)
        rows, out = end_to_end(z[some], columns), quantized[some]
        target = out if dim == columns and out.is_contiguous() else torch.empty_like(rows)
        _all_stages(rows, indices[some], target, codebooks, config, kept_bytes)
        if target is not out:
            out.copy_(target[..., :dim])


def _all_stages(
    z: Tensor,
    indices: Tensor,
    quantized: Tensor,
    codebooks: Tensor,
    config: Configuration,
    kept_bytes: Tensor | None,
) -> None:
    """The op for contiguous rows and codes, D = block_dim."""
    num_rows = z.numel() // z.shape[-1]
    is_packed = kept_bytes is not None
    plan = planned(num_rows, z.dtype, codebooks.shape, config, z.device, is_packed)
    plan.run(z, codebooks, indices, quantized, *([] if kept_bytes is None else [kept_bytes]))


@kept
def planned(
    num_rows: int,
    dtype: torch.dtype,
    book_shape: torch.Size,
    config: Configuration,
    device: torch.device,
    is_packed: bool,
) -> Plan:
    """The launches for rows [N, D] and books [Q, K, D] that lie end to end.

    is_packed: whether the books are packed already, in the bytes that `kept_books` describes.
    """
    stages, num_codes, dim = book_shape
    z, codebooks, indices, quantized = (
        Pointer(operand, torch.int64 if operand == 3 else dtype) for operand in (1, 2, 3, 4)
    )
    plan = Plan()
    support = support_configuration(dim, True)
    chunk = min(support.chunk, dim)  # which divides D, so no load along it needs a mask
    kept_form = form_of_books(book_shape, dtype, device) if is_packed else None
    limits = tuple(plan.zeros((stages,), torch.int32) for _ in range(0 if kept_form else 3))
    num_listed = plan.zeros((1,), torch.int32)
    listed = plan.empty((num_rows,), torch.int64)
    if kept_form is not None:
        packed = kept_form.laid_out(Region(_KEPT_BYTES))
    else:
        form = PackedForm((stages, num_codes, dim), PACKED_DTYPE, config.block_codes, dim, 0)
        packed = form.laid_out(plan.memory, limits)
        prepare(
            plan,
            books_at(codebooks, book_shape, (num_codes * dim, dim, 1)),
            rows_at(z, (num_rows, dim), (dim, 1)),
            0,
            packed,
            block_dim=dim,
            start_columns=0,
            codes_at_once=support.prepare_codes,
        )
    outputs = (indices, quantized, listed, num_listed)
    plan.launch(
        residual_kernel,
        (triton.cdiv(num_rows, config.block_rows),),
        z,
        num_rows,
        codebooks,
        num_codes,
        dim,
        stages,
        *packed.pointers,
        packed.rows // config.block_codes,
        *outputs,
        BLOCK_ROWS=config.block_rows,
        BLOCK_CODES=config.block_codes,
        BLOCK_DIM=dim,
        CHECK_DIM=16,
        COPIES=copies_of_starts(config),
        GROUP=config.group,
        NUM_STAGES=config.num_stages,
        CHUNK=chunk,
        MEASURE_CHUNK=4,  # more elements of 64 rows at a time would spill
        **ROUNDING[PACKED_DTYPE],
        num_warps=config.num_warps,
    )
    programs = min(_EXACT_PROGRAMS_PER_SM * multiprocessors(device), num_rows)
    plan.launch(
        residual_exact_kernel,
        (programs,),
        z,
        codebooks,
        num_codes,
        dim,
        stages,
        *outputs,
        BLOCK_CODES=4 * support.exact_codes,  # of one row, not of a block of rows
        STEP=chunk // 2,
        CHUNK=chunk,
        num_warps=4,
        **registers(128),  # so few programs could have twice as many
    )
    return plan
