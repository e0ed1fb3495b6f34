"""Every op in plain PyTorch, searched and summed in float64, on any device.

It serves every call that no kernel serves, and keeps the same contract: exact answers, lowest index
on ties, never N x K numbers in memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqvae_fast.backends.reference.top import nearest_codes as nearest_codes
from vqvae_fast.dtypes import distance_dtype
from vqvae_fast.formulas import (
    average_in_,
    directions,
    flat_indices,
    rotated_gradient,
    smoothed_size,
    write_means_,
)

# Elements of the largest temporary: 4 Mi float64 scores are 32 MiB, for every N and K.
_CHUNK_ELEMENTS = 1 << 22


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Exact nearest code of every row.

    Args:
        z: [..., D], or [H, ..., D] with separate books.
        codebook: [K, D], or [H, K, D].

    Returns:
        indices, int64, and squared Euclidean distances, both z.shape[:-1].
    """
    if codebook.dim() == 3:
        books = [nearest_code(*pair) for pair in zip(z, codebook, strict=True)]
        indices, distances = (torch.stack(part) for part in zip(*books, strict=True))
        return indices, distances
    rows = z.reshape(-1, z.shape[-1])
    chunk = max(1, _CHUNK_ELEMENTS // max(codebook.shape))
    pairs = [_nearest_in_chunk(part, codebook) for part in rows.split(chunk)]
    indices, distances = (torch.cat(part) for part in zip(*pairs, strict=True))
    distances = distances.to(distance_dtype(z.dtype))
    return indices.view(z.shape[:-1]), distances.view(z.shape[:-1])


def _nearest_in_chunk(rows: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """rows: [n, D], codebook: [K, D] -> indices [n], float64 distances [n]."""
    z, codes = rows.double(), codebook.double()
    usable = codes.isfinite().all(dim=1)
    if not usable.any():
        return z.new_zeros(len(z), dtype=torch.int64), (z - codes[:1]).square().sum(dim=1)
    codes = torch.where(usable[:, None], codes, 0.0)

    # score = z.e - |e|^2/2 orders the codes as the distance does. Around the codebook's centre
    # the numbers are as small as the data allows, and so is the rounding error of the score.
    centre = codes[usable].mean(dim=0)
    zc, ec = z - centre, codes - centre
    scores = torch.addmm(-0.5 * ec.square().sum(dim=1), zc, ec.T)
    scores.masked_fill_(~usable, -torch.inf)
    largest_code = ec.norm(dim=1).max()
    relative = (z.shape[1] + 8) * torch.finfo(torch.float64).eps
    underflow = z.shape[1] * torch.finfo(torch.float64).tiny
    bound = relative * (zc.norm(dim=1) * largest_code + largest_code.square()) + underflow

    # Codes that the bound cannot rule out are measured directly. A NaN compares false with
    # everything, so "not less" keeps it among the candidates.
    best = scores.amax(dim=1)
    candidates = ~(scores < (best - 2 * bound)[:, None]) & usable
    row, code = candidates.nonzero(as_tuple=True)
    step = max(1, _CHUNK_ELEMENTS // z.shape[1])
    distance = torch.cat(
        [
            (z[r] - codes[c]).square().sum(dim=1)
            for r, c in zip(row.split(step), code.split(step), strict=True)
        ]
    )
    nearest = z.new_full((len(z),), torch.inf).scatter_reduce(0, row, distance, "amin")
    tied = distance == nearest[row]
    indices = torch.full_like(nearest, len(codes), dtype=torch.int64)
    indices = indices.scatter_reduce(0, row[tied], code[tied], "amin")
    is_nan = z.isnan().any(dim=1)
    return indices.masked_fill(is_nan, 0), nearest.masked_fill(is_nan, torch.nan)


@torch.no_grad()
def quantize(
    z: Tensor,
    codebook: Tensor,
    *,
    nearest_code: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = nearest_code,
) -> tuple[Tensor, Tensor, Tensor]:
    """The search and the gather: (codebook[indices] in z's strides, indices, distances)."""
    indices, distances = nearest_code(z, codebook)
    quantized = torch.empty_like(z)
    if codebook.dim() == 3:
        for h, book in enumerate(codebook):
            quantized[h] = book[indices[h]]
    else:
        quantized.copy_(codebook[indices])
    return quantized, indices, distances


@torch.no_grad()
def residual_nearest_code(
    z: Tensor,
    codebooks: Tensor,
    *,
    nearest_code: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = nearest_code,
) -> tuple[Tensor, Tensor]:
    """Each stage quantizes the residual of the stages before it.

    Args:
        z: [..., D].
        codebooks: [Q, K, D].
        nearest_code: searches one stage.

    Returns:
        indices [..., Q], int64, and the sum of the chosen codes, like z.
    """
    residual, quantized, chosen = z, torch.zeros_like(z), []
    for book in codebooks:
        indices, _ = nearest_code(residual, book)
        codes = book[indices]
        residual = residual - codes
        quantized += codes
        chosen.append(indices)
    return torch.stack(chosen, dim=-1), quantized


def _nearest_packed_code(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The search of the codebook itself: nothing is packed here."""
    return nearest_code(z, codebook)


@torch.no_grad()
def composed_residual_code(
    vectors: Tensor,
    entry: Tensor,
    entry_bias: Tensor,
    codebooks: Tensor,
    compared: Tensor,
    packed: Tensor,
    corrections: Tensor,
    exit: Tensor,
    exit_bias: Tensor,
    cosine: bool,
    *,
    nearest_packed_code: Callable[
        [Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
    ] = _nearest_packed_code,
) -> tuple[Tensor, Tensor]:
    """Residual quantization whose stages see the vectors through maps that were composed.

    The columns of the two maps are rounded up to a multiple of 16; the last have no effect.

    Args:
        vectors: [..., C].
        entry: [C, Q * D], leads to what each stage would see if the stages before it had taken
            nothing.
        entry_bias: [Q * D].
        codebooks: [Q, K, D].
        compared: [Q, K, D], what the searches compare in the place of the codes.
        packed: uint8 [Q, B], its packed form.
        corrections: [Q, D, Q * D], what each element of a stage's code takes from what the stages
            behind it see; the columns of the others have no effect.
        exit: [Q * D, C], leads from the codes to the sum of what the stages give.
        exit_bias: [C].
        cosine: the searches compare directions.
        nearest_packed_code: searches one stage.

    Returns:
        indices [..., Q], int64, and the sum [..., C].

    Raises:
        ValueError: the shapes do not fit.
    """
    stages, _, dim = codebooks.shape if codebooks.dim() == 3 else (0, 0, 0)
    width, channels = stages * dim, vectors.shape[-1] if vectors.dim() else 0
    columns, columns_back = (-(-size // 16) * 16 for size in (width, channels))
    if (
        codebooks.numel() == 0
        or channels == 0
        or compared.shape != codebooks.shape
        or corrections.shape != (stages, dim, width)
        or (entry.shape, entry_bias.shape) != ((channels, columns), (columns,))
        or (exit.shape, exit_bias.shape) != ((width, columns_back), (columns_back,))
    ):
        given = (vectors, codebooks, compared, corrections, entry, exit, entry_bias, exit_bias)
        raise ValueError(
            "vectors must be [..., C], codebooks and compared [Q, K, D], corrections "
            "[Q, D, Q * D], and with columns up to a multiple of 16 entry [C, Q * D] and exit "
            "[Q * D, C] and their biases, got {}, {}, {}, {}, {}, {}, {} and {}".format(
                *(list(part.shape) for part in given)
            )
        )
    left = (vectors @ entry + entry_bias)[..., :width]
    indices, chosen = [], []
    for stage, book in enumerate(compared):
        rows, left = left[..., :dim], left[..., dim:]
        found, _ = nearest_packed_code(directions(rows) if cosine else rows, book, packed[stage])
        codes = codebooks[stage][found]
        left = left - codes @ corrections[stage, :, (stage + 1) * dim :]
        indices.append(found)
        chosen.append(codes)
    quantized = torch.cat(chosen, dim=-1) @ exit[:, :channels] + exit_bias[:channels]
    return torch.stack(indices, dim=-1), quantized


@torch.no_grad()
def project(vectors: Tensor, matrix: Tensor, bias: Tensor, columns: int) -> Tensor:
    """Vectors through a linear map.

    Args:
        vectors: [..., C].
        matrix: [C, columns up to a multiple of 16]; the last have no effect.
        bias: [as many].
        columns: how many elements the results have.

    Returns:
        [..., columns].

    Raises:
        ValueError: the shapes do not fit.
    """
    whole = -(-columns // 16) * 16
    if (
        vectors.dim() == 0
        or min(vectors.shape[-1], columns) < 1
        or (matrix.shape, bias.shape) != ((vectors.shape[-1], whole), (whole,))
    ):
        raise ValueError(
            "vectors must be [..., C], matrix [C, columns up to a multiple of 16] and bias of as "
            f"many, both contiguous, for columns={columns}, got {list(vectors.shape)}, "
            f"{list(matrix.shape)} and {list(bias.shape)}"
        )
    return vectors @ matrix[:, :columns] + bias[:columns]


@torch.no_grad()
def segment_sum(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each segment, in row order, accumulated in float64.

    Args:
        src: [..., D].
        indices: int64, src.shape[:-1], each below ``num_segments``; rows with a negative
            index belong to no segment.
        num_segments: K, the number of segments.

    Returns:
        sums [K, D] and counts [K], both float32 (float64 for float64 input).
    """
    dtype = distance_dtype(src.dtype)
    rows, segment = src.reshape(indices.numel(), src.shape[-1]), indices.reshape(-1)
    if segment.numel() and int(segment.max()) >= num_segments:
        raise IndexError(f"indices must be below num_segments={num_segments}")
    member = segment >= 0
    rows, segment = rows[member].double(), segment[member]
    counts = torch.bincount(segment, minlength=num_segments)
    order = torch.argsort(segment, stable=True)
    sums = torch.segment_reduce(rows[order], "sum", lengths=counts, axis=0, initial=0.0)
    return sums.to(dtype), counts.to(dtype)


@torch.no_grad()
def moving_average_(
    average: Tensor,
    cluster_size: Tensor,
    codebook: Tensor,
    src: Tensor,
    indices: Tensor,
    decay: float,
    eps: float,
    *,
    segment_sum: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = segment_sum,
) -> None:
    """Update the averages with a batch and write them into the codes.

    Van den Oord et al., arXiv 1711.00937, appendix A.1.

    Args:
        average: [K, D], or [H, K, D] with separate books: the average sum of each
            code's vectors.
        cluster_size: [K], or [H, K]: the average number of each code's vectors.
        codebook: [K, D], or [H, K, D].
        src: [..., D], or [H, ..., D].
        indices: int64, src.shape[:-1]; rows with a negative index are left out.
        decay: weight of the past, 0 <= decay < 1.
        eps: of the smoothing, in vectors per batch.
        segment_sum: sums the vectors of each code.
    """
    flat = flat_indices(indices, codebook)
    sums, counts = segment_sum(src, flat, cluster_size.numel())
    average_in_(cluster_size, counts.view_as(cluster_size), 1 - decay)
    average_in_(average, sums.view_as(average), 1 - decay)
    write_means_(codebook, average, smoothed_size(cluster_size, eps))


@torch.no_grad()
def quantize_backward(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
    *,
    segment_sum: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = segment_sum,
) -> tuple[Tensor, Tensor]:
    """Gradients of the quantized vectors and of the loss to z and to the codebook.

    Args:
        grad_quantized: like z, any strides; it goes straight through.
        grad_loss: 0-d.
        z: [..., D], or [H, ..., D] with separate books.
        codebook: [K, D], or [H, K, D].
        indices: int64, z.shape[:-1], the codes that the search chose.
        commitment_weight: weight of mean((z - sg[q])^2).
        codebook_weight: weight of mean((sg[z] - q)^2).
        segment_sum: sums the errors of each code.

    Returns:
        grad_z like z and grad_codebook like codebook.
    """
    wide = distance_dtype(z.dtype)
    flat, codes = flat_indices(indices, codebook), codebook.reshape(-1, codebook.shape[-1])
    error = z.to(wide) - codes[flat].to(wide)
    per_element = grad_loss.to(wide) * (2.0 / max(z.numel(), 1))
    grad_z = torch.empty_like(z)
    grad_z.copy_(grad_quantized + (per_element * commitment_weight) * error)
    # Sum the errors instead of subtracting two sums: far from the origin the two sums would agree
    # in all their digits.
    sums, _ = segment_sum(error, flat, len(codes))
    grad_codebook = (sums * (per_element * -codebook_weight)).to(codebook.dtype)
    return grad_z, grad_codebook.view(codebook.shape)


@torch.no_grad()
def take_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """codebook[indices]: [K, D] and [...], or [H, K, D] and [H, ...] -> [..., D] or [H, ..., D]."""
    rows = flat_indices(indices, codebook).reshape(-1)
    dim = codebook.shape[-1]
    codes = codebook.new_empty((*indices.shape, dim))  # no view: the caller may write to it
    torch.index_select(codebook.reshape(-1, dim), 0, rows, out=codes.view(len(rows), dim))
    return codes


@torch.no_grad()
def copy_of_codes(codebook: Tensor) -> Tensor:
    """The codes in memory of their own."""
    return codebook.clone()


@torch.no_grad()
def residual_backward(
    grad_quantized: Tensor,
    grad_losses: Tensor,
    z: Tensor,
    books: Sequence[Tensor],
    indices: Tensor,
    rotates: bool,
) -> Tensor:
    """Gradient of the vectors that went through the stages of residual quantization.

    A stage quantizes the residual of the stages before it, which counts as constant except for z.
    Its loss is mean((residual - code)^2).

    Args:
        grad_quantized: like z, of the sum of the codes.
        grad_losses: [Q], of the stages' losses.
        z: [..., D].
        books: Q times [K, D], the codes as they were in the search.
        indices: int64 [..., Q], the codes that the search chose.
        rotates: the gradient is rotated, else it passes straight through.

    Returns:
        Like z.
    """
    residual, grad_z = z, z.new_zeros(z.shape)
    for stage, book in enumerate(books):
        codes = take_codes(book, indices[..., stage])
        error = residual - codes
        grad_z += rotated_gradient(grad_quantized, residual, codes) if rotates else grad_quantized
        grad_z += error * (grad_losses[stage] * (2.0 / max(z.numel(), 1)))
        residual = error
    return grad_z
