"""The public functions validate their arguments once and then call the ops."""

import operator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.autocast import is_autocast
from vqvae_fast.autograd.straight_through_quantize import StraightThroughQuantize
from vqvae_fast.formulas import flat_indices
from vqvae_fast.packed import PackedCodebook
from vqvae_fast.similarity import METRICS, as_euclidean, dissimilarity

_STRIDED = torch.strided
_NARROW_DTYPES = (torch.bfloat16, torch.float16)
_FLOAT_DTYPES = (torch.float32, *_NARROW_DTYPES, torch.float64)


class NearestCode(NamedTuple):
    """Result of :func:`nearest_code`."""

    indices: Tensor
    distances: Tensor


class NearestCodes(NamedTuple):
    """Result of :func:`nearest_codes`."""

    indices: Tensor
    distances: Tensor


class Quantized(NamedTuple):
    """Result of :func:`quantize`."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    distances: Tensor


class ResidualNearestCode(NamedTuple):
    """Result of :func:`residual_nearest_code`."""

    indices: Tensor
    quantized: Tensor


class SegmentSum(NamedTuple):
    """Result of :func:`segment_sum`."""

    sums: Tensor
    counts: Tensor


def nearest_code(
    z: Tensor,
    codebook: Tensor | PackedCodebook,
    *,
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    backend: str | None = None,
) -> NearestCode:
    """Exact nearest code of every latent vector, by squared Euclidean distance.

    Args:
        z: [..., D] latent vectors, any strides; [H, ..., D] with H separate books. float32,
            bfloat16, float16 or float64. Under autocast z and codebook are taken in float32.
        codebook: [K, D], or [H, K, D]; same dtype and device as z. Or the result of
            :func:`vqvae_fast.pack`, for the Euclidean metric and without ``backend``.
        metric: "cosine" and "dot" find the largest cosine similarity and the largest inner product
            instead; the product of the code that is found is within 4e-6 of ``|z| max|e|`` of the
            largest. Both copy z and the codebook, for "dot" with two more columns.
        backend: "triton", "cuda", "cpu" or "reference", instead of the backend chosen for the
            device (``vqvae-fast info`` lists them). It overrides the environment
            (:mod:`vqvae_fast.settings`). All give exact answers.

    Returns:
        ``(indices, distances)``, both of shape ``z.shape[:-1]`` and without gradient. indices are
        int64, the lowest of exact ties. distances are sum((z - e)^2), or 1 - cos(z, e), or -z.e;
        float32 (float64 for float64 input). A row with a NaN gets index 0 and distance NaN; a code
        with a NaN or an infinity is never chosen unless all codes have one. For the cosine, zero
        vectors and zero codes count as NaN: they have no direction.

    Raises:
        ValueError: shapes or devices do not match; there is no such metric or backend; an
            environment variable asks for something that does not exist.
        TypeError: a dtype is not a float type, or the two differ; a tensor is sparse or nested.
        RuntimeError: the backend that was asked for, here or in the environment, cannot run here;
            the message says why. All functions of this module raise this error and the ValueError.

    Memory is O(N + K) beside inputs and outputs, plus one packed copy of the codebook: N x K
    numbers are never stored. The same inputs give the same bits for every number of threads.
    """
    if isinstance(codebook, PackedCodebook):
        _check_packed_metric(metric)
        if metric != "euclidean" or backend is not None:
            raise ValueError(
                "a packed codebook serves metric='euclidean' and backend=None, "
                f"got {metric!r} and {backend!r}: pass packed.codebook in its place"
            )
        z, codes, packed = _packed_pair(z, codebook)
        _check_search(z, codes)
        rows = z.detach() if z.requires_grad else z
        return NearestCode(*torch.ops.vqvae_fast.nearest_packed_code(rows, codes, packed))
    _check_tensors(z=z, codebook=codebook)
    z, codebook = _autocast_to_float32(z, codebook)
    _check_search(z, codebook)
    # With a gradient the dispatcher would mark the distances as if they had one. detach takes as
    # long as a quarter of a small search.
    z = z.detach() if z.requires_grad else z
    codebook = codebook.detach() if codebook.requires_grad else codebook
    _check_metric(metric)
    pair = (z, codebook) if metric == "euclidean" else as_euclidean(z, codebook, metric)
    search = torch.ops.vqvae_fast.nearest_code
    indices, distances = search(*pair) if backend is None else search.on(*pair, backend)
    if metric != "euclidean":
        distances = dissimilarity(z, codebook, indices, distances, metric)
    return NearestCode(indices, distances)


def nearest_codes(
    z: Tensor,
    codebook: Tensor | PackedCodebook,
    k: int,
    *,
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
) -> NearestCodes:
    """Exact k nearest codes of every latent vector, by squared Euclidean distance.

    Args:
        z: [..., D] latent vectors, any strides; [H, ..., D] with H separate books. Dtypes as for
            :func:`nearest_code`.
        codebook: [K, D], or [H, K, D]; same dtype and device as z. Or the result of
            :func:`vqvae_fast.pack`, for the Euclidean metric.
        k: how many codes: 1 to K.
        metric: as for :func:`nearest_code`.

    Returns:
        ``(indices, distances)``, both of shape ``[*z.shape[:-1], k]`` and without gradient, the
        nearest code first. indices are int64; of exact ties the lowest comes first. distances are
        those of :func:`nearest_code`, and so are both results for k = 1, bit for bit. Codes with a
        NaN or an infinity come behind all others, by their index, and their distance is what the
        arithmetic gives, an infinity or NaN. A row with a NaN gets the indices 0 to k - 1 and
        distances of NaN.

    Raises:
        ValueError: k is not from 1 to K; else as from :func:`nearest_code`.
        TypeError: k is not an integer; else as from :func:`nearest_code`.

    Every float64 distance exceeds the one that belongs at its place by no more than 1e-6 of it
    (1e-12 for float64 input). Memory is O(N k + K) beside inputs, plus one packed copy of the
    codebook: N x K numbers are never stored. The same inputs give the same bits for every number
    of threads. The C++ kernels find the codes by a proven bound; on other devices PyTorch measures
    all codes in float64, in chunks, which is slow.
    """
    packed = None
    if isinstance(codebook, PackedCodebook):
        _check_packed_metric(metric)
        if metric != "euclidean":
            raise ValueError(
                f"a packed codebook serves metric='euclidean', got {metric!r}: "
                "pass packed.codebook in its place"
            )
        z, codebook, packed = _packed_pair(z, codebook)
    else:
        _check_tensors(z=z, codebook=codebook)
        z, codebook = _autocast_to_float32(z, codebook)
    _check_search(z, codebook)
    _check_metric(metric)
    k = _integer("k", k)
    if not 1 <= k <= codebook.shape[-2]:
        raise ValueError(f"k must be from 1 to K={codebook.shape[-2]}, got {k}")
    z, codebook = z.detach(), codebook.detach()
    if packed is not None:
        found = torch.ops.vqvae_fast.nearest_packed_codes(z, codebook, packed, k)
        return NearestCodes(*found)
    pair = (z, codebook) if metric == "euclidean" else as_euclidean(z, codebook, metric)
    indices, distances = torch.ops.vqvae_fast.nearest_codes(*pair, k)
    if metric != "euclidean":
        distances = dissimilarity(z, codebook, indices, distances, metric)
    return NearestCodes(indices, distances)


def quantize(
    z: Tensor,
    codebook: Tensor | PackedCodebook,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    channel_first: bool = False,
    sparse: bool = False,
) -> Quantized:
    """Replace every latent vector by its nearest code, differentiably.

    The gradient is that of ``z + (q - z).detach()`` and of
    ``loss = commitment_weight * mean((z - sg[q])^2) + codebook_weight * mean((sg[z] - q)^2)``
    (van den Oord et al., arXiv 1711.00937, eq. 3; sg is stop-gradient).

    Args:
        z: [..., D], or [B, D, ...] with ``channel_first``; [H, ..., D] with H separate books.
            Dtypes as for :func:`nearest_code`. No layout is copied.
        codebook: [K, D], or [H, K, D] (not with ``channel_first``). Or the result of
            :func:`vqvae_fast.pack`, which has no gradient.
        commitment_weight: weight of the term that pulls z to its code (beta in the article).
        codebook_weight: weight of the term that pulls a code to its vectors; 0 for a codebook
            that learns by moving averages.
        channel_first: the vectors lie along dimension 1, as in feature maps [B, D, height, width].
        sparse: the codebook's gradient is a sparse tensor of the chosen codes, as that of
            ``torch.nn.Embedding(sparse=True)``, for ``torch.optim.SparseAdam`` or ``SGD``: a step
            then costs nothing for the codes that no vector chose. Not under ``torch.compile``.

    Returns:
        ``(quantized, indices, loss, distances)``: quantized like z; indices and distances as from
        :func:`nearest_code`, z's shape without D; loss 0-d, float32 (float64 for float64 input).
        An empty z has a loss of 0.

    Raises:
        ValueError: a shape, or the devices, do not fit.
        TypeError: a dtype is not a float type, or the two differ; a tensor is sparse or nested.
    """
    packed = None
    if isinstance(codebook, PackedCodebook):
        if sparse:
            raise ValueError(
                "sparse=True asks for a gradient of the codes, but a packed codebook has none"
            )
        z, codebook, packed = _packed_pair(z, codebook)
    else:
        _check_tensors(z=z, codebook=codebook)
        z, codebook = _autocast_to_float32(z, codebook)
    if channel_first:
        _check_channel_first(z, codebook)
        z = z.movedim(1, -1)
    _check_search(z, codebook)
    quantized, indices, distances, loss, *_ = StraightThroughQuantize.apply(  # type: ignore[no-untyped-call]
        z, codebook, commitment_weight, codebook_weight, sparse, packed
    )
    if channel_first:
        quantized = quantized.movedim(-1, 1)
    return Quantized(quantized, indices, loss, distances)


def residual_nearest_code(
    z: Tensor, codebooks: Tensor | PackedCodebook, *, num_quantizers: int | None = None
) -> ResidualNearestCode:
    """Quantize every latent vector in stages, each on the residual of the one before (RVQ).

    From ``residual = z``, stage q finds the :func:`nearest_code` of the residual in
    ``codebooks[q]`` and subtracts it, in z's dtype (residual VQ as in SoundStream, Zeghidour et
    al., arXiv 2107.03312, algorithm 1). For inference: there is no gradient.

    Args:
        z: [..., D] latent vectors, any strides. float32, bfloat16, float16 or float64. Under
            autocast z and codebooks are taken in float32.
        codebooks: [Q, K, D], one book for each stage; same dtype and device as z. Or the result of
            :func:`vqvae_fast.pack`.
        num_quantizers: how many stages run, from the first on: 1 to Q; None for all.

    Returns:
        ``(indices, quantized)``: indices [..., Q] int64, Q the number of stages that run; quantized
        like z, the sum of the chosen codes, added in the order of the stages in z's dtype. A row
        with a NaN gets index 0 in all stages. Other special values follow from the stages.

    Raises:
        ValueError: a shape, or the devices, do not fit; there are not so many stages.
        TypeError: a dtype is not a float type, or the two differ; a tensor is sparse or nested.

    On a CPU all stages run in one native call. On a GPU all stages are one launch for D <= 64 and
    K <= 32768, or D <= 128 and K <= 16384, except in float64. Otherwise each stage is a search. All
    choose the same codes, unless float64 cannot tell which of two is nearer (1e-14 of the
    distance).
    """
    packed = None
    if isinstance(codebooks, PackedCodebook):
        z, codebooks, packed = _packed_pair(z, codebooks)
    else:
        _check_tensors(z=z, codebooks=codebooks)
        z, codebooks = _autocast_to_float32(z, codebooks)
    _check_pair(z, codebooks, "codebooks")
    if codebooks.dim() != 3 or codebooks.shape[-1] != z.shape[-1]:
        raise ValueError(
            f"codebooks must be [Q, K, D={z.shape[-1]}], got {_shape(codebooks.shape)}"
        )
    if 0 in codebooks.shape:
        raise ValueError(
            "codebooks must have at least one book, one code and one dimension, "
            f"got {_shape(codebooks.shape)}"
        )
    if num_quantizers is not None:
        stages = _integer("num_quantizers", num_quantizers)
        if not 1 <= stages <= codebooks.shape[0]:
            raise ValueError(
                f"num_quantizers must be from 1 to Q={codebooks.shape[0]}, got {stages}"
            )
        codebooks = codebooks[:stages]
        packed = None if packed is None else packed[:stages]
    z, codebooks = z.detach(), codebooks.detach()
    if packed is None:
        found = torch.ops.vqvae_fast.residual_nearest_code(z, codebooks)
    else:
        found = torch.ops.vqvae_fast.residual_nearest_packed_code(z, codebooks, packed)
    return ResidualNearestCode(*found)


def segment_sum(src: Tensor, indices: Tensor, num_segments: int) -> SegmentSum:
    """Sum the rows of every segment, for EMA statistics and codebook gradients.

    Args:
        src: [..., D] rows, any strides, a float dtype.
        indices: int64, src.shape[:-1], each below ``num_segments``; a row with a negative index
            belongs to no segment (a masked row, a dropped quantizer).
        num_segments: K, the number of codes.

    Returns:
        ``(sums, counts)``: [K, D] and [K], float32 (float64 for float64 input), without gradient.
        The rows are added in their order, so the same inputs give the same bits.

    Raises:
        ValueError: a shape, or the devices, do not fit.
        TypeError: src is not a float type or indices are not int64.
        IndexError: an index is not below ``num_segments``. On CUDA this check
            synchronizes; it is skipped under ``torch.compile``.
    """
    result = _segment_sum(src, indices, num_segments)
    # On a GPU the op itself never waits, and never reads or writes memory at such an index.
    checked = indices.is_cuda and indices.numel() > 0 and not torch.compiler.is_compiling()
    if checked and int(indices.max()) >= num_segments:
        raise IndexError(f"indices must be below num_segments={num_segments}")
    return result


def _segment_sum(src: Tensor, indices: Tensor, num_segments: int) -> SegmentSum:
    _check_tensors(src=src, indices=indices)
    if src.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"src must be one of {_names(_FLOAT_DTYPES)}, got {src.dtype}")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be torch.int64, got {indices.dtype}")
    if src.dim() < 1 or indices.shape != src.shape[:-1]:
        raise ValueError(
            f"indices must have src's shape without its last dimension, {_shape(src.shape[:-1])}, "
            f"got {_shape(indices.shape)}"
        )
    num_segments = _integer("num_segments", num_segments)
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    _check_devices("src", src, "indices", indices)
    return SegmentSum(*torch.ops.vqvae_fast.segment_sum(src.detach(), indices, num_segments))


def code_statistics(z: Tensor, indices: Tensor, codebook: Tensor | PackedCodebook) -> SegmentSum:
    """Sum and count the vectors that chose each code.

    Args:
        z: [..., D] vectors, or [H, ..., D] with separate books.
        indices: int64, z.shape[:-1]; rows with a negative index are left out.
        codebook: [K, D] or [H, K, D], a tensor or the result of :func:`vqvae_fast.pack`; only its
            shape is used.

    Returns:
        ``(sums, counts)``: sums in the codebook's shape, counts in it without D, both float32
        (float64 for float64 input).
    """
    if isinstance(codebook, PackedCodebook):
        codebook = codebook.codebook
    _check_tensors(codebook=codebook)
    total = codebook.shape[:-1].numel()
    rows = flat_indices(indices, codebook)
    sums, counts = _segment_sum(z, rows, total)
    return SegmentSum(sums.view(codebook.shape), counts.view(codebook.shape[:-1]))


def _packed_pair(z: Tensor, packed: PackedCodebook) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z, the codes and their packed form, as autocast wants them.

    Under autocast 16-bit codes become float32, for which there is no packed form.
    """
    _check_tensors(z=z)
    packed.check_unchanged()
    stored = packed.codebook.detach() if packed.codebook.requires_grad else packed.codebook
    z, codes = _autocast_to_float32(z, stored)
    if z.dtype != codes.dtype and z.dtype in _FLOAT_DTYPES:
        raise TypeError(
            f"the packed codebook must have z's dtype {z.dtype}, got {codes.dtype}: "
            f"pack the codes in {z.dtype}, or cast z"
        )
    _check_devices("z", z, "the packed codebook", codes)
    if codes is stored:
        return z, codes, packed.packed
    return z, codes, packed.packed[..., :0].contiguous()


def _check_packed_metric(metric: str) -> None:
    _check_metric(metric)
    if metric == "cosine":
        raise ValueError(
            "a packed codebook serves metric='euclidean', got 'cosine': pass packed.codebook "
            "in its place, or pack codes of unit length and search with vectors of unit length "
            "(torch.nn.functional.normalize), whose squared distance is 2 - 2 cos(z, e)"
        )


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")


def _check_tensors(**arguments: object) -> None:
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(argument).__name__}")
        if argument.layout is not _STRIDED:
            raise TypeError(f"{name} must be a {_STRIDED} tensor, got one of {argument.layout}")


def _integer(name: str, number: Any) -> int:
    """Returns the number if it is an integer of NumPy or Python; otherwise raises TypeError."""
    if isinstance(number, (int, torch.SymInt)):
        return number  # type: ignore[return-value]  # sizes of torch.compile stay symbolic
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None


def _autocast_to_float32(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Cast 16-bit tensors to float32 under autocast.

    Autocast itself does not cast for custom ops.
    """
    if z.dtype not in _NARROW_DTYPES and codebook.dtype not in _NARROW_DTYPES:
        return z, codebook  # at once, because asking takes a microsecond
    if is_autocast(z.device.type):
        z = z.float() if z.dtype in _NARROW_DTYPES else z
        codebook = codebook.float() if codebook.dtype in _NARROW_DTYPES else codebook
    return z, codebook


def _check_pair(z: Tensor, codebook: Tensor, name_of_codebook: str) -> None:
    dtype, other = z.dtype, codebook.dtype
    if dtype != other or dtype not in _FLOAT_DTYPES:
        for name, wrong in (("z", dtype), (name_of_codebook, other)):
            if wrong not in _FLOAT_DTYPES:
                raise TypeError(f"{name} must be one of {_names(_FLOAT_DTYPES)}, got {wrong}")
        raise TypeError(f"{name_of_codebook} must have z's dtype {dtype}, got {other}")
    _check_devices("z", z, name_of_codebook, codebook)
    if z.dim() < 1:
        raise ValueError("z must be [..., D], got a tensor without dimensions")


def _check_search(z: Tensor, codebook: Tensor) -> None:
    _check_pair(z, codebook, "codebook")
    rows, codes = z.shape, codebook.shape
    if len(codes) not in (2, 3) or codes[-1] != rows[-1]:
        raise ValueError(
            f"codebook must be [K, D={rows[-1]}] or [H, K, D={rows[-1]}], got {_shape(codes)}"
        )
    if len(codes) == 3 and (len(rows) < 2 or rows[0] != codes[0]):
        raise ValueError(
            f"z must be [H={codes[0]}, ..., D={codes[-1]}] for the books {_shape(codes)}, "
            f"got {_shape(rows)}"
        )
    if 0 in codes:
        raise ValueError(
            f"codebook must have at least one code and one dimension, got {_shape(codes)}"
        )


def _check_channel_first(z: Tensor, codebook: Tensor) -> None:
    if z.dim() < 2:
        raise ValueError(f"z must be [B, D, ...] with channel_first, got {_shape(z.shape)}")
    if codebook.dim() == 3:
        raise ValueError(
            f"codebook must be [K, D] with channel_first, got {_shape(codebook.shape)}"
        )


def _check_devices(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{other_name} must be on {name}'s device {tensor.device}, got {other.device}"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)


def _shape(shape: torch.Size) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
