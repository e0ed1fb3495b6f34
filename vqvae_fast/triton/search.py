"""The search: scores on the matrix unit, a proven bound, and exact distances for what is left.

Five kernels: `prepare` packs the codebook; `scan` finds each row's best group of codes; `settle`
measures it and knows by a bound (docs/exactness.md) whether any other code can be nearer; `rescan`
takes the scores of the rows where one can once more and measures what reaches the bound; `exact`
measures every code for the few rows that have no bound. The host waits for none of them, so CUDA
graphs capture a search.
"""

import torch
import triton
from torch import Tensor

from vqvae_fast.reference import distance_dtype
from vqvae_fast.triton.configurations import (
    configuration,
    multiprocessors,
    registers,
    support_configuration,
)
from vqvae_fast.triton.exact import exact_kernel
from vqvae_fast.triton.prepare import ROUNDING, prepare
from vqvae_fast.triton.rescan import rescan_kernel
from vqvae_fast.triton.rows import VECTOR, Rows, alignment, as_rows, head_stride, padded
from vqvae_fast.triton.scan import TILES_PER_PART, scan_kernel
from vqvae_fast.triton.settle import settle_kernel

# The bound holds for rows up to this length; longer ones are measured in full.
_LONGEST_ROW = 1 << 16
# Programs an SM that there should be, or the codes of a block of rows are shared out; no part is
# smaller than a few tiles, which its beginning and end would outweigh.
_PROGRAMS_PER_SM = 2
_LEAST_TILES = 4
# Programs an SM of all books together that share out the listed rows.
_LISTED_PROGRAMS_PER_SM = 4
# Of an SM's 65536, a thread: for two programs of `rescan`, four of `exact` and six of `settle`.
_RESCAN_REGISTERS = 255
_EXACT_REGISTERS = 128
_SETTLE_REGISTERS = 80
# Rows up to this length that lie together are packed in registers; others in memory, of so many
# elements at most, where the matrix unit's tiles are read without strides and masks.
_LONGEST_DIRECT = 128
_PACKED_ELEMENTS = 1 << 25
# What the second and the third dimension of a grid may be.
_MOST_BOOKS = 65535
# Of a slab of rows and the parts of the codes, 12 bytes each: what a search keeps stays O(N + K).
_ENTRIES = 1 << 21


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
    shape = z.shape[:-1]
    return (
        z.new_empty(shape, dtype=torch.int64),
        z.new_empty(shape, dtype=distance_dtype(z.dtype)),
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
    if codebook.dim() == 2:
        z, codebook = z[None], codebook[None]
        quantized = quantized if quantized is None else quantized[None]
    rows, target = _rows_of_books(z), _rows_of_books(z if quantized is None else quantized)
    heads, num_codes, dim = codebook.shape
    num_rows = indices.numel() // heads
    programs = _PROGRAMS_PER_SM * multiprocessors(z.device)
    filtered = z.dtype != torch.float64 and dim <= _LONGEST_ROW
    # Only where there are fewer blocks of rows than programs are codes shared out, and merged.
    listed_programs = max(1, _LISTED_PROGRAMS_PER_SM * multiprocessors(z.device) // heads)

    # Counters, which start at 0: one fill for all of them.
    sizes = [3 * padded(heads), padded(2 * heads), *[padded(heads * listed_programs)] * 2]
    zeros = torch.zeros(sum(sizes), dtype=torch.int32, device=z.device)
    limits, num_listed, rescan_arrivals, exact_arrivals = zeros.split(sizes)
    listed = z.new_empty((heads, num_rows) if filtered else 0, dtype=torch.int64)
    bounds = z.new_empty((2, heads, num_rows) if filtered else 0, dtype=torch.float32)

    z_head, q_head = head_stride(rows.tensor), head_stride(target.tensor)
    book_strides = (head_stride(codebook), *codebook.stride()[1:])
    z_arguments = (*rows.arguments, z_head, num_rows)
    book_arguments = (codebook, *book_strides, num_codes, dim)
    outputs = (indices, distances, *target.arguments, q_head)
    all_aligned = alignment(VECTOR, dim, rows, z_head, target, q_head, *book_strides[:2])
    support = support_configuration(all_aligned > 1)
    shape = (heads, listed_programs, max(support.exact_rows, support.rescan_rows))
    shared = (
        z.new_empty(shape, dtype=torch.float64),
        z.new_empty(shape, dtype=torch.int64),
        listed_programs,
    )
    if filtered:
        config = configuration(dim, packed_dtype)
        packed = prepare(
            codebook,
            rows,
            z_head,
            limits.view(3, -1)[:, :heads],
            dtype=packed_dtype,
            block_codes=config.block_codes,
            block_dim=config.block_dim,
            codes_at_once=support.prepare_codes,
        )
        packed_codes, columns = packed.codes.shape[1:]
        tiles = packed_codes // config.block_codes
        row_blocks = triton.cdiv(num_rows, config.block_rows)
        parts = max(1, min(programs // (row_blocks * heads), tiles // _LEAST_TILES))
        parts = max(parts, triton.cdiv(tiles, TILES_PER_PART.value))
        slab_rows = min(num_rows, max(_ENTRIES // (parts * heads), config.block_rows))
        z_aligned = alignment(VECTOR, dim, rows, z_head)
        store_rows = z_aligned == 1 or columns > min(_LONGEST_DIRECT, config.block_dim)
        if store_rows:
            slab_rows = min(
                slab_rows, max(_PACKED_ELEMENTS // (columns * heads), config.block_rows)
            )
        padded_rows = triton.cdiv(slab_rows, config.block_rows) * config.block_rows
        packed_rows = z.new_empty(
            (heads, padded_rows, columns) if store_rows else 1, dtype=packed_dtype
        )
        scores = z.new_empty((heads, parts, slab_rows), dtype=torch.float32)
        groups = torch.empty_like(scores, dtype=torch.int32)
        rest = torch.empty_like(scores)
        rounding = z.new_empty((heads, slab_rows), dtype=torch.float32)
        row_norm = torch.empty_like(rounding)
        for first_row in range(0, num_rows, slab_rows):
            slab = (*z_arguments, first_row, slab_rows)
            scan_kernel[(triton.cdiv(slab_rows, config.block_rows), parts, heads)](
                *slab,
                dim,
                packed.codes,
                packed.bias,
                packed.centre,
                packed.scale,
                packed_codes,
                columns // config.block_dim,
                scores,
                groups,
                rest,
                rounding,
                row_norm,
                packed_rows,
                ALIGNED=z_aligned,
                STORE_ROWS=store_rows,
                ONE_CHUNK=columns == config.block_dim,
                BLOCK_ROWS=config.block_rows,
                BLOCK_CODES=config.block_codes,
                BLOCK_DIM=config.block_dim,
                CHECK_DIM=16,
                GROUP=config.group,
                NUM_STAGES=config.num_stages,
                num_warps=config.num_warps,
            )
            settle_kernel[(triton.cdiv(slab_rows, support.settle_rows), heads)](
                *slab,
                *book_arguments,
                *outputs,
                packed.centre,
                packed.scale,
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
                listed,
                num_listed,
                bounds,
                ALIGNED=all_aligned,
                QUANTIZE=quantized is not None,
                BLOCK_ROWS=support.settle_rows,
                GROUP=config.group,
                SLOTS=config.block_codes // config.group,
                PARTS=support.parts,
                CHUNK=support.chunk,
                GROUP_CHUNK=support.group_chunk,
                **ROUNDING[packed_dtype],
                num_warps=4,
                **registers(_SETTLE_REGISTERS),
            )
        rescan_kernel[(listed_programs, heads)](
            *z_arguments,
            *book_arguments,
            *outputs,
            packed.codes,
            packed.bias,
            packed.centre,
            packed.scale,
            packed_codes,
            columns // config.block_dim,
            listed,
            num_listed,
            bounds,
            rescan_arrivals,
            *shared,
            ALIGNED=all_aligned,
            QUANTIZE=quantized is not None,
            ONE_CHUNK=columns == config.block_dim,
            BLOCK_ROWS=support.rescan_rows,
            BLOCK_CODES=config.block_codes,
            BLOCK_DIM=config.block_dim,
            GROUP=config.group,
            NUM_STAGES=config.num_stages,
            CHUNK=support.chunk,
            GROUP_CHUNK=support.group_chunk,
            num_warps=4,
            **registers(_RESCAN_REGISTERS),
        )
    exact_kernel[(listed_programs, heads)](
        *z_arguments,
        *book_arguments,
        *outputs,
        listed,
        num_listed,
        exact_arrivals,
        *shared,
        ALIGNED=all_aligned,
        ALL_ROWS=not filtered,
        QUANTIZE=quantized is not None,
        BLOCK_ROWS=support.exact_rows,
        BLOCK_CODES=support.exact_codes,
        CHUNK=support.chunk,
        num_warps=4,
        **registers(_EXACT_REGISTERS),
    )
    if quantized is not None and target.tensor.data_ptr() != quantized.data_ptr():
        quantized.copy_(target.tensor)


def _rows_of_books(t: Tensor) -> Rows:
    """t: [H, ..., D] as the rows of one book, in a tensor with all books."""
    rows = as_rows(t[0])
    if rows.tensor.data_ptr() != t.data_ptr():
        t = t.contiguous()
        rows = as_rows(t[0])
    return rows._replace(tensor=t)
