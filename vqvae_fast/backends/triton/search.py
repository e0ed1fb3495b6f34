"""The search: scores on the matrix unit, a proven bound, and exact distances for what is left.

Six kernels: `prepare` packs the codebook, unless that was done before (`kept_books`); `scan` finds
each row's best group of codes; `settle` measures it and decides by a bound (docs/exactness.md)
whether any other code can be nearer; if so, `recheck` measures the other groups that the scan has
kept; where these may not be all, `rescan` computes the row's scores once more and measures the
codes that reach the bound; `exact` measures every code for the few rows that have no bound. The
host waits for none of them, so CUDA graphs capture a search. The launches of a search and their
numbers follow from its shapes, strides and types: they are computed once (`planned`) and repeated.
"""

import torch
from torch import Tensor

from vqvae_fast.backends.triton.configurations import multiprocessors
from vqvae_fast.backends.triton.forms import Form, can_be_direct, direct_form
from vqvae_fast.backends.triton.kept_books import PACKED_DTYPE, form_of_books, readable_bytes
from vqvae_fast.backends.triton.launch import Plan, Pointer, Region, kept
from vqvae_fast.backends.triton.rows import books_at
from vqvae_fast.backends.triton.search_launches import plan_direct, plan_kernels
from vqvae_fast.backends.triton.search_operands import SearchOperands, rows_of_books
from vqvae_fast.dtypes import distance_dtype

# The largest second and third dimension of a grid.
_MOST_BOOKS = 65535
# The form of all searches; None leaves it to the model. For tests and measurements.
forced_form: Form | None = None
# The tensors of a search, in the order in which its plan counts them. Behind them come those that a
# search may lack: the target, then the packed codes.
_Z, _CODEBOOK, _INDICES, _DISTANCES, _OPTIONAL = range(1, 6)


def nearest_code(
    z: Tensor, codebook: Tensor, *, packed_dtype: torch.dtype = PACKED_DTYPE
) -> tuple[Tensor, Tensor]:
    """The op of this name. packed_dtype: float32 multiplies without the matrix unit."""
    indices, distances = _results(z)
    _search(z, codebook, indices, distances, None, packed_dtype, None)
    return indices, distances


def nearest_packed_code(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    kept_bytes = readable_bytes(packed, codebook)
    indices, distances = _results(z)
    _search(z, codebook, indices, distances, None, PACKED_DTYPE, kept_bytes)
    return indices, distances


def quantize(
    z: Tensor, codebook: Tensor, *, packed_dtype: torch.dtype = PACKED_DTYPE
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name: the search, and the chosen codes in z's strides."""
    indices, distances = _results(z)
    quantized = torch.empty_like(z)
    _search(z, codebook, indices, distances, quantized, packed_dtype, None)
    return quantized, indices, distances


def quantize_packed(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name."""
    kept_bytes = readable_bytes(packed, codebook)
    indices, distances = _results(z)
    quantized = torch.empty_like(z)
    _search(z, codebook, indices, distances, quantized, PACKED_DTYPE, kept_bytes)
    return quantized, indices, distances


def _results(z: Tensor) -> tuple[Tensor, Tensor]:
    shape, device = z.shape[:-1], z.device
    return (
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(shape, dtype=distance_dtype(z.dtype), device=device),
    )


def _search(
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    distances: Tensor,
    quantized: Tensor | None,
    packed_dtype: torch.dtype,
    kept_bytes: Tensor | None,
) -> None:
    """kept_bytes: the codes as they were packed beforehand."""
    if indices.numel() == 0:
        return
    if codebook.dim() == 3 and len(codebook) > _MOST_BOOKS:
        for first in range(0, len(codebook), _MOST_BOOKS):
            some = slice(first, first + _MOST_BOOKS)
            out = None if quantized is None else quantized[some]
            parts = (z[some], codebook[some], indices[some], distances[some], out)
            _search(*parts, packed_dtype, None)  # so many books are not kept packed
        return
    target_strides = None if quantized is None else quantized.stride()
    plan, copies_z, copies_target = planned(
        z.shape,
        z.stride(),
        z.dtype,
        codebook.shape,
        codebook.stride(),
        target_strides,
        packed_dtype,
        z.device,
        forced_form,
        kept_bytes is not None,
    )
    if copies_z:
        z = z.contiguous()
    packed = () if kept_bytes is None else (kept_bytes,)
    if quantized is None:
        plan.run(z, codebook, indices, distances, *packed)
    elif copies_target:
        target = torch.empty_like(quantized, memory_format=torch.contiguous_format)
        plan.run(z, codebook, indices, distances, target, *packed)
        quantized.copy_(target)
    else:
        plan.run(z, codebook, indices, distances, quantized, *packed)


@kept
def planned(
    z_shape: torch.Size,
    z_strides: tuple[int, ...],
    dtype: torch.dtype,
    book_shape: torch.Size,
    book_strides: tuple[int, ...],
    target_strides: tuple[int, ...] | None,
    packed_dtype: torch.dtype,
    device: torch.device,
    form: Form | None,
    is_packed: bool,
) -> tuple[Plan, bool, bool]:
    """The launches of a search, and whether z and the target are copied for them.

    target_strides: of the tensor with z's shape that gets the chosen codes; None if none does.
    is_packed: whether the codes are packed already, in the bytes that `kept_books` describes.
    """
    plan = Plan()
    z, z_head, copies_z = rows_of_books(_Z, dtype, z_shape, z_strides, len(book_shape) == 3)
    target, q_head, copies_target = z, z_head, False
    if target_strides is not None:
        target, q_head, copies_target = rows_of_books(
            _OPTIONAL, dtype, z_shape, target_strides, len(book_shape) == 3
        )
    codebook = books_at(Pointer(_CODEBOOK, dtype), book_shape, book_strides)
    heads, num_codes, dim = codebook.shape
    prepared = None
    if is_packed and (kept_form := form_of_books(book_shape, dtype, device)) is not None:
        prepared = kept_form.laid_out(Region(_OPTIONAL + (target_strides is not None)))
    search = SearchOperands(
        z,
        z_head,
        codebook,
        target,
        q_head,
        target_strides is not None,
        Pointer(_INDICES, torch.int64),
        Pointer(_DISTANCES, distance_dtype(dtype)),
        packed_dtype,
        prepared,
    )
    processors = multiprocessors(device)
    direct = None
    if can_be_direct(dtype, packed_dtype):
        aligned = (search.book_alignment > 1, search.row_alignment > 1)
        direct = direct_form(z.num_rows, num_codes, dim, heads, aligned, processors, form)
    if direct is not None:
        plan_direct(plan, search, direct)
    else:
        plan_kernels(plan, search, processors, filtered=dtype != torch.float64)
    return plan, copies_z, copies_target
