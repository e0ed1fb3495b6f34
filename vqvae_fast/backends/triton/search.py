"""The search: scores on the matrix unit, a proven bound, and exact distances for what is left.

Five kernels: `prepare` packs the codebook; `scan` finds each row's best group of codes; `settle`
measures it and decides by a bound (docs/exactness.md) whether any other code can be nearer; if so,
`rescan` computes the row's scores once more and measures the codes that reach the bound; `exact`
measures every code for the few rows that have no bound. The host waits for none of them, so CUDA
graphs capture a search. The launches of a search and their numbers follow from its shapes, strides
and types: they are computed once (`planned`) and repeated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from vqvae_fast.backends.triton.configurations import (
    SupportConfiguration,
    columns_for_start,
    configuration,
    copies_of_starts,
    multiprocessors,
    registers,
    support_configuration,
)
from vqvae_fast.backends.triton.direct import direct_kernel
from vqvae_fast.backends.triton.exact import exact_kernel
from vqvae_fast.backends.triton.forms import DirectForm, Form, can_be_direct, direct_form
from vqvae_fast.backends.triton.launch import Plan, Pointer, kept
from vqvae_fast.backends.triton.prepare import ROUNDING, prepare
from vqvae_fast.backends.triton.rescan import rescan_kernel
from vqvae_fast.backends.triton.rows import (
    Books,
    Rows,
    are_rows,
    books_at,
    head_stride,
    rows_at,
    widest_alignment,
)
from vqvae_fast.backends.triton.scan import TILES_PER_PART, scan_kernel
from vqvae_fast.backends.triton.settle import settle_kernel
from vqvae_fast.dtypes import distance_dtype

# The bound holds for rows up to this length; longer ones are measured in full.
_LONGEST_ROW = 1 << 16
# With fewer programs an SM than this, the codes of a block of rows are divided. No part has fewer
# tiles than this, because its beginning and end would take longer than the tiles.
_PROGRAMS_PER_SM = 2
_LEAST_TILES = 4
# Programs an SM, of all books together, among which the listed rows are divided.
_LISTED_PROGRAMS_PER_SM = 4
# Registers that a thread may take. An SM has 65536, which is enough for one program of `rescan`,
# three of `exact` or six of `settle`.
_RESCAN_REGISTERS = 255
_EXACT_REGISTERS = 168
_SETTLE_REGISTERS = 80
# All that a thread of one program a multiprocessor can have. The scan without the matrix unit takes
# them, too.
_DIRECT_REGISTERS = 255
_PLAIN_REGISTERS = 255
# Rows up to this length that lie together are packed in registers; others in memory, of so many
# elements at most, where the matrix unit's tiles are read without strides and masks.
_LONGEST_DIRECT = 128
_PACKED_ELEMENTS = 1 << 25
# The largest second and third dimension of a grid.
_MOST_BOOKS = 65535
# A slab of rows has at most so many pairs of a row and a part of the codes. Each pair takes 12
# bytes, so the memory of a search stays O(N + K).
_ENTRIES = 1 << 21


# The form of all searches; None leaves it to the model. For tests and measurements.
forced_form: Form | None = None
# The tensors of a search, in the order in which its plan counts them.
_Z, _CODEBOOK, _INDICES, _DISTANCES, _TARGET = range(1, 6)


def nearest_code(
    z: Tensor, codebook: Tensor, *, packed_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor]:
    """The op of this name. packed_dtype: float32 multiplies without the matrix unit."""
    indices, distances = _results(z)
    _search(z, codebook, indices, distances, None, packed_dtype)
    return indices, distances


def quantize(
    z: Tensor, codebook: Tensor, *, packed_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name: the search, and the chosen codes in z's strides."""
    indices, distances = _results(z)
    quantized = torch.empty_like(z)
    _search(z, codebook, indices, distances, quantized, packed_dtype)
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
) -> None:
    if indices.numel() == 0:
        return
    if codebook.dim() == 3 and len(codebook) > _MOST_BOOKS:
        for first in range(0, len(codebook), _MOST_BOOKS):
            some = slice(first, first + _MOST_BOOKS)
            out = None if quantized is None else quantized[some]
            _search(z[some], codebook[some], indices[some], distances[some], out, packed_dtype)
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
    )
    if copies_z:
        z = z.contiguous()
    if quantized is None:
        plan.run(z, codebook, indices, distances)
    elif copies_target:
        target = torch.empty_like(quantized, memory_format=torch.contiguous_format)
        plan.run(z, codebook, indices, distances, target)
        quantized.copy_(target)
    else:
        plan.run(z, codebook, indices, distances, quantized)


class _Search(NamedTuple):
    """A search as its launches see it.

    Attributes:
        rows: those of the first book.
        z_head: from there to the rows of the next book.
        codebook: all books.
        target: where the rows' codes are written; z if they are not written.
        q_head: as z_head.
        quantizes: whether codes are written.
        indices: int64 [H, N].
        distances: float32 or float64 [H, N].
        packed_dtype: the dtype in which scores are multiplied.
    """

    rows: Rows
    z_head: int
    codebook: Books
    target: Rows
    q_head: int
    quantizes: bool
    indices: Pointer
    distances: Pointer
    packed_dtype: torch.dtype

    @property
    def z_arguments(self) -> tuple[object, ...]:
        return (*self.rows.arguments, self.z_head, self.rows.num_rows)

    @property
    def result_arguments(self) -> tuple[object, ...]:
        """The books, and where the results go."""
        _, num_codes, dim = self.codebook.shape
        return (
            self.codebook.start,
            *self.codebook.strides,
            num_codes,
            dim,
            self.indices,
            self.distances,
            *self.target.arguments,
            self.q_head,
        )

    @property
    def row_alignment(self) -> int:
        """The alignment of the rows that the search reads and writes."""
        dim = self.codebook.shape[2]
        return widest_alignment(dim, self.rows, self.z_head, self.target, self.q_head)

    @property
    def alignment(self) -> int:
        """The alignment of all rows and codes."""
        return min(self.row_alignment, _book_alignment(self.codebook))


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
) -> tuple[Plan, bool, bool]:
    """The launches of a search, and whether z and the target are copied for them.

    target_strides: of the tensor with z's shape that gets the chosen codes; None if none does.
    """
    plan = Plan()
    z, z_head, copies_z = _rows_of_books(_Z, dtype, z_shape, z_strides, len(book_shape) == 3)
    target, q_head, copies_target = z, z_head, False
    if target_strides is not None:
        target, q_head, copies_target = _rows_of_books(
            _TARGET, dtype, z_shape, target_strides, len(book_shape) == 3
        )
    codebook = books_at(Pointer(_CODEBOOK, dtype), book_shape, book_strides)
    heads, num_codes, dim = codebook.shape
    search = _Search(
        z,
        z_head,
        codebook,
        target,
        q_head,
        target_strides is not None,
        Pointer(_INDICES, torch.int64),
        Pointer(_DISTANCES, distance_dtype(dtype)),
        packed_dtype,
    )
    processors = multiprocessors(device)
    direct = None
    if can_be_direct(dtype, packed_dtype):
        aligned = (_book_alignment(codebook) > 1, search.row_alignment > 1)
        direct = direct_form(z.num_rows, num_codes, dim, heads, aligned, processors, form)
    if direct is not None:
        _plan_direct(plan, search, direct)
    else:
        _plan_kernels(plan, search, processors, filtered=dtype != torch.float64)
    return plan, copies_z, copies_target


def _plan_direct(plan: Plan, search: _Search, form: DirectForm) -> None:
    """The search in one launch, and a fill of counters if programs share the codes."""
    heads = search.codebook.shape[0]
    shared = form.parts > 1
    blocks = (heads, form.row_blocks) if shared else (0,)
    parts = (*blocks, form.parts, form.block_rows)
    plan.launch(
        direct_kernel,
        (form.row_blocks, form.parts, heads),
        *search.z_arguments,
        *search.result_arguments,
        form.part_codes,
        plan.zeros(blocks, torch.int32),
        plan.empty(parts, torch.float64),
        plan.empty(parts, torch.int64),
        ALIGNED=search.row_alignment,
        BOOK_ALIGNED=_book_alignment(search.codebook),
        QUANTIZE=search.quantizes,
        SHARED=shared,
        BLOCK_ROWS=form.block_rows,
        BLOCK_CODES=form.block_codes,
        BLOCK_DIM=form.block_dim,
        CHUNK=form.chunk,
        NUM_STAGES=form.num_stages,
        **ROUNDING[torch.float16],
        num_warps=form.num_warps,
        **registers(_DIRECT_REGISTERS),
    )


class _Listed(NamedTuple):
    """The rows that `settle` leaves to `rescan` and to `exact`.

    Attributes:
        rows: int64 [H, N], those for `rescan` from the front, those for `exact` from the back.
        counts: int32 [2, H], zeros; how many there are of each.
        programs: those that share out the rows of a book.
        part_distances: float64 [H, programs, rows of a program], for either kernel in turn.
        part_codes: int64, likewise.
    """

    rows: Pointer
    counts: Pointer
    programs: int
    part_distances: Pointer
    part_codes: Pointer


def _plan_kernels(plan: Plan, search: _Search, processors: int, *, filtered: bool) -> None:
    """The search in five kernels, or in `exact` alone."""
    heads, _, dim = search.codebook.shape
    filtered = filtered and dim <= _LONGEST_ROW
    programs = max(1, _LISTED_PROGRAMS_PER_SM * processors // heads)
    support = support_configuration(search.alignment > 1)
    limits = (
        plan.zeros((heads,), torch.int32),
        plan.zeros((heads,), torch.int32),
        plan.zeros((heads,), torch.int32),
    )
    counts = plan.zeros((2, heads), torch.int32)
    rescan_arrivals = plan.zeros((heads, programs), torch.int32)
    exact_arrivals = plan.zeros((heads, programs), torch.int32)
    shared = (heads, programs, max(support.exact_rows, support.rescan_rows))
    listed = _Listed(
        plan.empty((heads, search.rows.num_rows if filtered else 0), torch.int64),
        counts,
        programs,
        plan.empty(shared, torch.float64),
        plan.empty(shared, torch.int64),
    )
    if filtered:
        _plan_filter(plan, search, support, limits, listed, rescan_arrivals, processors)
    _plan_exact(plan, search, support, listed, exact_arrivals, all_rows=not filtered)


def _plan_filter(
    plan: Plan,
    search: _Search,
    support: SupportConfiguration,
    limits: tuple[Pointer, Pointer, Pointer],
    listed: _Listed,
    arrivals: Pointer,
    processors: int,
) -> None:
    """Packs the books, scans them, settles a slab of rows at a time, and rescans what is listed."""
    heads, _, dim = search.codebook.shape
    num_rows = search.rows.num_rows
    config = configuration(dim, search.packed_dtype)
    start_columns = columns_for_start(config, dim, search.packed_dtype)
    packed = prepare(
        plan,
        search.codebook,
        search.rows,
        search.z_head,
        limits,
        dtype=search.packed_dtype,
        block_codes=config.block_codes,
        block_dim=config.block_dim,
        start_columns=start_columns,
        codes_at_once=support.prepare_codes,
    )
    columns = packed.columns
    # Codes are divided, and results merged, only if there are fewer blocks of rows than programs.
    programs = _PROGRAMS_PER_SM * processors
    tiles = packed.rows // config.block_codes
    row_blocks = triton.cdiv(num_rows, config.block_rows)
    parts = max(1, min(programs // (row_blocks * heads), tiles // _LEAST_TILES))
    parts = max(parts, triton.cdiv(tiles, TILES_PER_PART.value))
    slab_rows = min(num_rows, max(_ENTRIES // (parts * heads), config.block_rows))
    z_aligned = widest_alignment(dim, search.rows, search.z_head)
    store_rows = z_aligned == 1 or columns > min(_LONGEST_DIRECT, config.block_dim)
    if store_rows:
        most = max(_PACKED_ELEMENTS // (columns * heads), config.block_rows)
        slab_rows = min(slab_rows, most)
    padded_rows = triton.cdiv(slab_rows, config.block_rows) * config.block_rows
    packed_rows = plan.empty(
        (heads, padded_rows if store_rows else 0, columns), search.packed_dtype
    )
    scores = plan.empty((heads, parts, slab_rows), torch.float32)
    groups = plan.empty((heads, parts, slab_rows), torch.int32)
    rest = plan.empty((heads, parts, slab_rows), torch.float32)
    rounding = plan.empty((heads, slab_rows), torch.float32)
    row_norm = plan.empty((heads, slab_rows), torch.float32)
    bounds = plan.empty((2, heads, num_rows), torch.float32)
    for first_row in range(0, num_rows, slab_rows):
        slab = (*search.z_arguments, first_row, slab_rows)
        plan.launch(
            scan_kernel,
            (triton.cdiv(slab_rows, config.block_rows), parts, heads),
            *slab,
            dim,
            packed.codes,
            packed.start,
            packed.centre,
            packed.scale,
            packed.rows,
            columns // config.block_dim,
            scores,
            groups,
            rest,
            rounding,
            row_norm,
            packed_rows,
            ALIGNED=z_aligned,
            STORE_ROWS=store_rows,
            START_COLUMNS=start_columns,
            COPIES=copies_of_starts(config),
            ONE_CHUNK=columns == config.block_dim,
            BLOCK_ROWS=config.block_rows,
            BLOCK_CODES=config.block_codes,
            BLOCK_DIM=config.block_dim,
            CHECK_DIM=16,
            GROUP=config.group,
            NUM_STAGES=config.num_stages,
            num_warps=config.num_warps,
            **(registers(_PLAIN_REGISTERS) if search.packed_dtype == torch.float32 else {}),
        )
        plan.launch(
            settle_kernel,
            (triton.cdiv(slab_rows, support.settle_rows), heads),
            *slab,
            *search.result_arguments,
            packed.centre,
            packed.scale,
            packed.base,
            packed.max_norm,
            packed.max_rounding,
            packed.has_outliers,
            columns,
            scores,
            groups,
            rest,
            rounding,
            row_norm,
            parts,
            listed.rows,
            listed.counts,
            bounds,
            ALIGNED=search.alignment,
            QUANTIZE=search.quantizes,
            BLOCK_ROWS=support.settle_rows,
            GROUP=config.group,
            SLOTS=config.block_codes // config.group,
            PARTS=support.parts,
            CHUNK=support.chunk,
            GROUP_CHUNK=support.group_chunk,
            START_COLUMNS=start_columns,
            **ROUNDING[search.packed_dtype],
            num_warps=4,
            **registers(_SETTLE_REGISTERS if search.alignment == 16 else _EXACT_REGISTERS),
        )
    plan.launch(
        rescan_kernel,
        (listed.programs, heads),
        *search.z_arguments,
        *search.result_arguments,
        packed.codes,
        packed.start,
        packed.centre,
        packed.scale,
        packed.rows,
        columns // config.block_dim,
        listed.rows,
        listed.counts,
        bounds,
        arrivals,
        listed.part_distances,
        listed.part_codes,
        listed.programs,
        ALIGNED=search.alignment,
        QUANTIZE=search.quantizes,
        START_COLUMNS=start_columns,
        ONE_CHUNK=columns == config.block_dim,
        BLOCK_ROWS=support.rescan_rows,
        BLOCK_CODES=config.block_codes,
        BLOCK_DIM=config.block_dim,
        GROUP=config.group,
        NUM_STAGES=config.num_stages,
        CHUNK=support.chunk,
        GROUP_CHUNK=support.group_chunk,
        num_warps=8,
        **registers(_RESCAN_REGISTERS),
    )


def _plan_exact(
    plan: Plan,
    search: _Search,
    support: SupportConfiguration,
    listed: _Listed,
    arrivals: Pointer,
    *,
    all_rows: bool,
) -> None:
    """Measures every code in float64, for the rows listed without a bound or for all."""
    plan.launch(
        exact_kernel,
        (listed.programs, search.codebook.shape[0]),
        *search.z_arguments,
        *search.result_arguments,
        listed.rows,
        listed.counts,
        arrivals,
        listed.part_distances,
        listed.part_codes,
        listed.programs,
        ALIGNED=search.alignment,
        ALL_ROWS=all_rows,
        QUANTIZE=search.quantizes,
        BLOCK_ROWS=support.exact_rows,
        BLOCK_CODES=support.exact_codes,
        CHUNK=support.chunk,
        num_warps=4,
        **registers(_EXACT_REGISTERS),
    )


def _book_alignment(codebook: Books) -> int:
    return widest_alignment(codebook.shape[2], *codebook.strides[:2])


def _rows_of_books(
    operand: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    strides: Sequence[int],
    has_heads: bool,
) -> tuple[Rows, int, bool]:
    """How a tensor [H, ..., D], or without H, is read.

    Returns:
        The first book's rows, the stride to the next book's, and whether that is said of a
        contiguous copy, because the tensor itself cannot be read as rows.
    """
    if not has_heads:
        shape, strides = (1, *shape), (0, *strides)
    copies = not are_rows(shape[1:], strides[1:])
    if copies:
        strides = torch.empty(shape, device="meta").stride()
    rows = rows_at(Pointer(operand, dtype), shape[1:], strides[1:])
    return rows, head_stride(shape, strides), copies
