"""The search: scores on the matrix unit, a proven bound, and exact distances for what is left.

docs/exactness.md derives the bound. Three kernels: `prepare` packs the codebook, `search` settles
nearly every row, `exact` measures every code for the rows that the bound could not settle.
"""

import torch
import triton
from torch import Tensor

from vqvae_fast.reference import distance_dtype
from vqvae_fast.triton.configurations import configuration
from vqvae_fast.triton.exact import exact_kernel
from vqvae_fast.triton.prepare import prepare
from vqvae_fast.triton.rows import Rows, as_rows
from vqvae_fast.triton.search_kernel import search_kernel

# What packing costs in relative and in absolute error, and from where on it is impossible.
_ROUNDING = {
    torch.float16: {"EPSILON": 2.0**-11 * 1.001, "SUBNORMAL": 2.0**-25, "LARGEST": 65504.0},
    torch.float32: {"EPSILON": 2.0**-23, "SUBNORMAL": 2.0**-149, "LARGEST": 1e13},
}
# The bound holds for rows up to this length; longer ones are measured in full.
_LONGEST_ROW = 1 << 16
# Elements of the codebook that one program measures for a listed row, at least.
_EXACT_ELEMENTS = 1 << 17
# Programs an SM that there should be, or the codes of a row block are shared out.
_PROGRAMS_PER_SM = 2
_MOST_PARTS = 64


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
    if codebook.dim() == 2:
        z, codebook = z[None], codebook[None]
        quantized = quantized if quantized is None else quantized[None]
    rows, target = _rows_of_books(z), _rows_of_books(z if quantized is None else quantized)
    heads, num_codes, dim = codebook.shape
    num_rows = indices.numel() // heads
    programs = _PROGRAMS_PER_SM * _multiprocessors(z.device)
    exact_parts = max(1, min(num_codes * dim // _EXACT_ELEMENTS, _MOST_PARTS))
    filtered = z.dtype != torch.float64 and dim <= _LONGEST_ROW

    config = configuration(dim, packed_dtype)
    row_blocks = triton.cdiv(num_rows, config.block_rows)
    tiles = triton.cdiv(num_codes, config.block_codes)
    parts = max(1, min(programs // (row_blocks * heads), tiles // 4, _MOST_PARTS))
    parts = parts if filtered else 1

    # Counters, which start at 0: one fill for all of them.
    sizes = [heads, heads, heads, heads * row_blocks, heads * num_rows if exact_parts > 1 else 0]
    zeros = torch.zeros(sum(sizes), dtype=torch.int32, device=z.device)
    max_norm, has_outliers, num_listed, block_arrivals, row_arrivals = zeros.split(sizes)
    most = max(parts, exact_parts)
    partial = heads * num_rows * most if most > 1 else 0
    part_distances = z.new_empty(partial, dtype=torch.float64)
    part_codes = z.new_empty(partial, dtype=torch.int64)
    listed = z.new_empty(heads * num_rows if filtered else 0, dtype=torch.int64)

    z_arguments = (*rows.arguments, z.stride(0), num_rows)
    book_arguments = (codebook, *codebook.stride(), num_codes, dim)
    outputs = (indices, distances, *target.arguments, target.tensor.stride(0))
    if filtered:
        packed = prepare(
            codebook,
            max_norm,
            has_outliers,
            dtype=packed_dtype,
            block_codes=config.block_codes,
            block_dim=config.block_dim,
        )
        chunks = packed.codes.shape[2] // config.block_dim
        search_kernel[(row_blocks, parts, heads)](
            *z_arguments,
            *book_arguments,
            *packed,
            packed.codes.shape[1],
            chunks,
            *outputs,
            listed,
            num_listed,
            block_arrivals,
            part_distances,
            part_codes,
            parts,
            ONE_CHUNK=chunks == 1,
            SEVERAL_PARTS=parts > 1,
            QUANTIZE=quantized is not None,
            BLOCK_ROWS=config.block_rows,
            BLOCK_CODES=config.block_codes,
            BLOCK_DIM=config.block_dim,
            GROUP=config.group,
            MEASURE_DIM=config.measure_dim,
            **_ROUNDING[packed_dtype],
            NUM_STAGES=config.num_stages,
            num_warps=config.num_warps,
        )
    exact_kernel[(min(2 * programs, num_rows * exact_parts), heads)](
        *z_arguments,
        *book_arguments,
        *outputs,
        listed,
        num_listed,
        row_arrivals,
        part_distances,
        part_codes,
        exact_parts,
        ALL_ROWS=not filtered,
        SEVERAL_PARTS=exact_parts > 1,
        QUANTIZE=quantized is not None,
        BLOCK_CODES=64,
        CHUNK=32,
        num_warps=4,
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


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter, where a few are enough to be several
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
