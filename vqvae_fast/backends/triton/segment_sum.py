"""The segment sum: a stable sort of the rows by segment, then sums of runs, chunk by chunk.

Error: the rows are added in float64, in their order within a chunk and chunk by chunk in a tree, so
a sum of n numbers is within 64 (1 + log_32 n) 2^-53 times the sum of their magnitudes, and rounded
once, to float32. Nothing waits for the device: a CUDA graph can hold all of it.

Limit: N * D read, K * D zeroed and written once each, and a sort of N labels of 2 bytes (K < 32768,
else 4) with 8-byte row numbers: on an H100 (3.35 TB/s), for N = 65536 and float32, 5 us at D = 64
and 20 us at D = 256. Expected on top of it, not measured: some 20 us for the latency of the sort,
and 5 us for each pass after the first (three passes in all for 2 Ki to 64 Ki rows, one more for 32
times as many). Feature maps are read an element from each 32-byte sector, up to eight times the
traffic where they do not fit the L2 cache (50 MB).
"""

import torch
import triton
from torch import Tensor

from vqvae_fast.backends.triton.configurations import FEWER_WARPS, registers
from vqvae_fast.backends.triton.rows import Rows, alignment, as_rows, padded
from vqvae_fast.backends.triton.segment_sum_kernels import (
    CHUNK_ROWS,
    bounds_kernel,
    label_kernel,
    sum_runs_kernel,
)
from vqvae_fast.dtypes import distance_dtype

_CHUNK_ROWS: int = CHUNK_ROWS.value
_BLOCK = 1024
# Columns that a thread reads at a time: 16 bytes, or 8 of 16-bit types, whose sums are float32. The
# threads that read are those that write, so no data moves from one thread to another.
_COLUMNS_A_THREAD = {
    torch.float32: 4,
    torch.bfloat16: 4,
    torch.float16: 4,
    torch.float64: 2,
}
# Columns and chunks of a program, which is one warp: as narrow as short rows, as wide as a line.
_TILES = {
    dtype: [(columns * n, 32 // n) for n in (1, 2, 4, 8)]
    for dtype, columns in _COLUMNS_A_THREAD.items()
}


def segment_sum(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """The op of this name. On a GPU rows with too large an index are left out, not an error.

    Raises:
        IndexError: an index of a CPU tensor is not below ``num_segments``. On a GPU this check
            would synchronize; :func:`vqvae_fast.segment_sum` does it.
    """
    if indices.device.type == "cpu" and bool((indices >= num_segments).any()):
        raise IndexError(f"indices must be below num_segments={num_segments}")
    return sums_and_counts(src, indices, num_segments)


def sums_and_counts(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """src: [..., D] -> sums [K, D], counts [K]; rows whose index is no segment are left out."""
    if indices.dtype != torch.int64 or src.dtype not in _COLUMNS_A_THREAD:
        raise TypeError(
            f"src must be a float type and indices int64, got {src.dtype} and {indices.dtype}"
        )
    if src.dim() < 1 or indices.shape != src.shape[:-1] or num_segments < 1:
        raise ValueError(
            "src must be [..., D] and indices [...] with num_segments >= 1, got "
            f"{list(src.shape)}, {list(indices.shape)} and {num_segments}"
        )
    dtype = distance_dtype(src.dtype)
    sums = src.new_zeros((num_segments, src.shape[-1]), dtype=dtype)
    counts = src.new_zeros(num_segments, dtype=dtype)
    if indices.numel() == 0:
        return sums, counts
    labels, order = sorted_rows(indices, num_segments)
    bounds = torch.zeros((2, padded(num_segments)), dtype=torch.int64, device=src.device)
    begin, end = bounds[:, :num_segments]
    num_rows = indices.numel()
    blocks = triton.cdiv(num_rows, _BLOCK)
    bounds_kernel[(blocks,)](labels, begin, end, num_rows, num_segments, BLOCK=_BLOCK)
    torch.sub(end, begin, out=counts)
    sum_runs(as_rows(src), labels, order, sums)
    return sums, counts


def sorted_rows(indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Labels in ascending order and the row of each, equal ones in row order; both [N].

    Labels are indices; ``num_segments`` stands for all that are no segment.
    """
    indices = indices.reshape(-1).contiguous()
    # A radix sort takes a pass for every byte of its keys.
    narrowest = next(
        dtype
        for dtype in (torch.int16, torch.int32, torch.int64)
        if num_segments <= torch.iinfo(dtype).max
    )
    labels = torch.empty_like(indices, dtype=narrowest)
    blocks = triton.cdiv(len(indices), _BLOCK)
    label_kernel[(blocks,)](indices, labels, len(indices), num_segments, BLOCK=_BLOCK)
    sorted_labels, order = torch.sort(labels, stable=True)
    return sorted_labels, order


def sum_runs(
    rows: Rows,
    labels: Tensor,
    order: Tensor,
    sums: Tensor,
    *,
    codes: Tensor | None = None,
    grad: Tensor | None = None,
    factor: float = 1.0,
) -> None:
    """Writes the sum of every segment that has rows.

    Args:
        rows: [N, D].
        labels: [N], ascending; the number of segments for rows without one.
        order: int64 [N], the row of each label.
        sums: [K, D], contiguous; written where a segment has rows.
        codes: [K, D], contiguous; subtracted from the rows of its segment.
        grad: 0-d; the sums are multiplied by it, and by ``factor``.
        factor: see ``grad``.
    """
    num_segments, dim = sums.shape
    if dim == 0:
        return
    num_rows, level = rows.num_rows, 0
    while True:
        block_dim, chunks_a_program = tile(dim, rows.tensor.dtype)
        aligned = alignment(_COLUMNS_A_THREAD[rows.tensor.dtype], dim, rows)
        subtract = level == 0 and codes is not None
        chunks = triton.cdiv(num_rows, _CHUNK_ROWS)
        pieces = sums.new_empty((2 * chunks, dim), dtype=torch.float64)
        piece_labels = labels.new_empty(2 * chunks)
        sum_runs_kernel[(triton.cdiv(chunks, chunks_a_program), triton.cdiv(dim, block_dim))](
            *rows.arguments,
            codes,
            order if level == 0 else None,
            labels,
            num_rows,
            num_segments,
            dim,
            sums,
            grad,
            factor,
            pieces,
            piece_labels,
            SORTED=level > 0,
            ONE_LEVEL=rows.inner >= num_rows,
            ALIGNED=aligned,
            SUBTRACT=subtract,
            SCALE=grad is not None,
            CHUNKS=chunks_a_program,
            BLOCK_DIM=block_dim,
            BATCH=batch(block_dim, rows.tensor.dtype, aligned, subtract),
            num_warps=1,
            **registers(255, FEWER_WARPS),  # a warp is alone in its program
        )
        if chunks == 1:
            return
        labels, num_rows, level = piece_labels, 2 * chunks, level + 1
        rows = as_rows(pieces)


def tile(dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Columns and chunks of a program, for rows of ``dim`` elements."""
    tiles = _TILES[dtype]
    return next((tile for tile in tiles if dim <= tile[0]), tiles[-1])


def batch(columns: int, dtype: torch.dtype, aligned: int, subtract: bool) -> int:
    """Rows that a thread loads at a time: as many as its registers can hold."""
    if aligned == 1:  # a thread has a column of several chunks, and one load for each in a row
        rows = 2  # 4 spill on sm_80
    elif columns == _COLUMNS_A_THREAD[dtype]:
        rows = 8
    else:
        rows = 16
    return rows // 2 if subtract else rows
