"""Books that are packed once, in bytes [H, B] (or [B]), and read by every search after that.

The bytes hold what a search would have `prepare` make, but for one thing: a search takes 16 of its
rows into account when it chooses the scale, and here the codes stand for them, because the rows are
not known. Any scale gives the right answer (docs/exactness.md). Rows that are so far from the codes
that they do not fit float16 under this one are measured in full.

Nothing may wait for the device to read what is in the bytes. So their number, in which there is a
checksum of the sizes and the dtype of the codebook, tells whether they are those of the search's
codebook: bytes of another number are left alone, and it packs the codes itself. It cannot tell
apart codebooks of the same sizes and dtype: a caller of the ops keeps the bytes with their codes,
as :class:`vqvae_fast.PackedCodebook` does.
"""

import torch
from torch import Tensor

from vqvae_fast.backends.triton.configurations import residual_configuration, support_configuration
from vqvae_fast.backends.triton.launch import Plan, Pointer, Region, kept
from vqvae_fast.backends.triton.packed_form import PackedForm
from vqvae_fast.backends.triton.prepare import prepare
from vqvae_fast.backends.triton.rows import books_at, rows_at, widest_alignment
from vqvae_fast.backends.triton.search_launches import LONGEST_ROW

PACKED_DTYPE = torch.float16
# A codebook of more books is not kept packed, because the bytes of a book grow with H.
_MOST_BOOKS = 1024
# The tensors of a plan.
_CODEBOOK, _BYTES = 1, 2


def pack_codebook(codebook: Tensor) -> Tensor:
    """The op of this name."""
    form = form_of_books(codebook.shape, codebook.dtype, codebook.device)
    shape = (*codebook.shape[:-2], 0 if form is None else form.bytes_of_book(codebook.dtype))
    packed = torch.zeros(shape, dtype=torch.uint8, device=codebook.device)
    if form is not None:
        plan = _planned(codebook.shape, codebook.stride(), codebook.dtype, codebook.device)
        plan.run(codebook, packed.view(-1))
    return packed


def readable_bytes(packed: Tensor, codebook: Tensor) -> Tensor | None:
    """The packed codes as the searches in this codebook read them, None if they cannot.

    Raises:
        ValueError: packed is not contiguous bytes on the codebook's device.
    """
    if packed.dtype != torch.uint8 or not packed.is_contiguous():
        raise ValueError(f"packed must be contiguous bytes, got {packed.dtype} {packed.stride()}")
    if packed.device != codebook.device:
        raise ValueError(f"packed must be on {codebook.device}, got {packed.device}")
    form = form_of_books(codebook.shape, codebook.dtype, codebook.device)
    if form is None:
        return None
    if packed.shape != (*codebook.shape[:-2], form.bytes_of_book(codebook.dtype)):
        return None
    # A slice of other bytes may begin anywhere.
    return packed.view(-1) if packed.storage_offset() % 16 == 0 else packed.view(-1).clone()


def padding_keeps_form(codebooks: Tensor, padded: Tensor) -> bool:
    """Whether books that get zeros behind D have the packed form that they had without them."""
    form, of_padded = (
        form_of_books(books.shape, books.dtype, books.device) for books in (codebooks, padded)
    )
    if form is None or of_padded is None:
        return False
    return form._replace(shape=of_padded.shape) == of_padded


@kept
def form_of_books(
    book_shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> PackedForm | None:
    """The form in which books [K, D] or [H, K, D] are kept, None for those that are not.

    device: the current one, for which the form is that of the searches.
    """
    heads, num_codes, dim = (1, *book_shape) if len(book_shape) == 2 else book_shape
    if dtype == torch.float64 or dim > LONGEST_ROW or heads > _MOST_BOOKS or 0 in book_shape:
        return None
    form = PackedForm.of_search((heads, num_codes, dim), PACKED_DTYPE)
    stages = residual_configuration(dim) if len(book_shape) == 3 else None
    if stages is not None:  # both sizes are powers of two, so tiles of either fill the rows
        form = form._replace(block_codes=max(form.block_codes, stages.block_codes))
    return form


@kept
def _planned(
    book_shape: torch.Size,
    book_strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    form = form_of_books(book_shape, dtype, device)
    assert form is not None
    books = books_at(Pointer(_CODEBOOK, dtype), book_shape, book_strides)
    head, row, element = books.strides
    rows = rows_at(books.start, books.shape[1:], (row, element))
    dim, is_aligned = books.shape[2], widest_alignment(books.shape[2], head, row) > 1
    plan = Plan()
    prepare(
        plan,
        books,
        rows,
        head,
        form.laid_out(Region(_BYTES)),
        block_dim=form.block_dim,
        start_columns=form.start_columns,
        codes_at_once=support_configuration(dim, is_aligned).prepare_codes,
    )
    return plan
