"""The Codebook of vector-quantize-pytorch: all searches and sums of its VectorQuantize are here.

Layouts, heads, losses, gradients of the result, expiry and what processes exchange stay the
library's own. Codes are searched and summed without the N x K numbers that it makes of them.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.acceleration.kept import forget, packed_books
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.acceleration.untraced import untraced
from vqvae_fast.autocast import without_autocast
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.nn.drop_in.plain_stage import is_watched
from vqvae_fast.similarity import as_euclidean

# Squared lengths of codes that F.normalize has made differ from 1 by less.
_ROUNDING_OF_LENGTHS = 2e-6
# The codebook that is being called by a VectorQuantize that does not read its distances.
_without_distances: ContextVar[Any] = ContextVar("_without_distances", default=None)


def call_without_distances(codebook: Any, call: Callable[[], Any]) -> Any:
    """Run a call that calls this codebook and does not read the distances that it returns."""
    if is_watched(codebook, type(codebook)):  # a hook may read them
        return call()
    before = _without_distances.set(codebook)
    try:
        return call()
    finally:
        _without_distances.reset(before)


def argument_that_draws(codebook: Any) -> str | None:
    """Return the argument by which training needs a logit for each vector and code, or None."""
    options = codebook.gumbel_sample.keywords
    names = {"stochastic": "stochastic_sample_codes", "straight_through": "straight_through"}
    return next((name for option, name in names.items() if options.get(option)), None)


def _chooses_as_the_library(codebook: Any) -> bool:
    chooses = codebook.gumbel_sample
    return (
        isinstance(chooses, functools.partial)
        and getattr(chooses.func, "__name__", None) == "gumbel_sample"
    )


def draws(codebook: Any, temperature: float | None) -> bool:
    """Whether a call chooses codes by a logit for each vector and code."""
    if not _chooses_as_the_library(codebook):
        return True
    temperature = codebook.sample_codebook_temp if temperature is None else temperature
    return codebook.training and temperature > 0 and argument_that_draws(codebook) is not None


@untraced
def _forward(
    original: Callable[..., Any],
    codebook: Any,
    x: Tensor,
    sample_codebook_temp: float | None = None,
    mask: Tensor | None = None,
    freeze_codebook: bool = False,
    codebook_transform_fn: Callable[..., Tensor] | None = None,
    ema_update_weight: Any = None,
    accum_ema_update: bool = False,
    ema_update: bool | None = None,
    topk: int | None = None,
    update_usage: bool = True,
) -> Any:
    """Codebook.forward: [B, N, d] or [C, ..., N, d] -> codes, indices, and None for distances."""
    is_read = _without_distances.get() is not codebook
    embed = codebook.embed
    fits = (x.shape[-1], x.device) == (embed.shape[-1], embed.device)
    if (
        not fits
        or is_read
        or codebook_transform_fn is not None
        or draws(codebook, sample_codebook_temp)
    ):
        if codebook.training:
            forget(codebook)
        return original(
            codebook,
            x,
            sample_codebook_temp,
            mask,
            freeze_codebook,
            codebook_transform_fn,
            ema_update_weight,
            accum_ema_update,
            ema_update,
            topk,
            update_usage,
        )
    vectors = x.float()
    vectors = vectors if x.dim() > 3 else vectors[None]
    rows = vectors.flatten(1, -2)
    counted = _of_rows(mask, rows)
    with without_autocast("cuda"):
        codebook.init_embed_(rows, mask=counted)
        if codebook.affine_param:
            codebook.update_affine(rows, codebook.embed, mask=counted)
        indices, quantized = _search(codebook, rows.detach(), topk)
        if codebook.training and update_usage and not freeze_codebook and topk is None:
            codebook.update_codebook(
                rows.detach(),
                indices,
                mask=counted,
                ema_update_weight=ema_update_weight,
                accum_ema_update=accum_ema_update,
                ema_update=ema_update,
            )
    indices, quantized = (
        part.unflatten(1, vectors.shape[1:-1]) if vectors.dim() > 3 else part
        for part in (indices, quantized)
    )
    return (quantized, indices, None) if x.dim() > 3 else (quantized[0], indices[0], None)


def _search(codebook: Any, rows: Tensor, topk: int | None) -> tuple[Tensor, Tensor]:
    """Rows [C, N, d] -> the indices [C, N, ...] and the codes, with a gradient to them."""
    packed = None
    as_stored = codebook.vq_bridge is None and not codebook.affine_param
    if as_stored and topk is None:
        packed = packed_books(codebook, [codebook.embed], codebook.embed.float)
    codes = _codes(codebook, rows.dtype) if packed is None else packed.codebook
    cosine = codebook.use_cosine_sim
    if len(codes) == 1 and len(rows) > 1:
        # Vectors [B, N, ways, d] of a beam: the library takes their batch for books.
        indices, quantized = _search(codebook, rows.flatten(0, 1)[None], topk)
        return indices[0].unflatten(0, rows.shape[:2]), quantized[0].unflatten(0, rows.shape[:2])
    if topk is not None:
        metric: Literal["euclidean", "dot"] = "dot"
        if not cosine or have_unit_length(codes):
            metric = "euclidean"
        indices = functional.nearest_codes(rows, codes, topk, metric=metric).indices
    elif not cosine or have_unit_length(codes):
        indices = functional.nearest_code(rows, codes if packed is None else packed).indices
    else:
        indices = functional.nearest_code(rows, codes, metric="dot").indices
    if cosine and topk is None:
        # All codes are equally similar to a vector of zeros, whatever rounding says.
        indices = torch.where(rows.any(dim=-1), indices, 0)
    return indices, take_codes(codes, indices)


def have_unit_length(codes: Tensor) -> bool:
    """Whether the nearest code has the largest product; the codes that are not used shrink."""
    lengths = codes.detach().square().sum(dim=-1)
    return bool((lengths - 1).abs().max() < _ROUNDING_OF_LENGTHS)


def _codes(codebook: Any, dtype: torch.dtype) -> Tensor:
    """The codes [C, K, d] among which the codebook searches, with a gradient if they learn."""
    codes: Tensor = codebook.embed if codebook.learnable_codebook else codebook.embed.detach()
    codes = codes.to(dtype)
    if codebook.vq_bridge is not None:
        codes = codebook.vq_bridge(codes)
    if codebook.affine_param:
        scale = _deviation(codebook.batch_variance) / _deviation(codebook.codebook_variance)
        codes = (codes - codebook.codebook_mean) * scale + codebook.batch_mean
    return codes


def _deviation(variance: Tensor) -> Tensor:
    return variance.clamp(min=1e-5).sqrt()


def _of_rows(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    """A mask [B, N] for rows [C, n, d], in which each item of the batch has its heads."""
    if mask is None:
        return None
    books, number = rows.shape[:2]
    heads = number // mask.numel() if mask.numel() else 1
    return mask[:, None].expand(-1, heads, -1).reshape(1, -1).expand(books, -1)


def _track(
    original: Callable[..., Any],
    codebook: Any,
    flatten: Tensor,
    embed_onehot: Tensor,
    mask: Tensor | None = None,
    ema_update_weight: Any = None,
    accum_ema_update: bool = False,
) -> None:
    """Codebook.track_cluster_size_and_embed_avg, which may get indices [C, N], not one-hot rows."""
    if embed_onehot.is_floating_point():
        original(codebook, flatten, embed_onehot, mask, ema_update_weight, accum_ema_update)
        return
    rows, chosen = flatten.detach(), embed_onehot
    if codebook.affine_param:
        scale = _deviation(codebook.codebook_variance) / _deviation(codebook.batch_variance)
        rows = (rows - codebook.batch_mean) * scale + codebook.codebook_mean
    if mask is not None:
        chosen = torch.where(mask, chosen, -1)
    sums, counts = functional.code_statistics(rows, chosen, codebook.embed)
    codebook.all_reduce_fn(counts)
    codebook.all_reduce_fn(sums)
    if callable(ema_update_weight):
        ema_update_weight = ema_update_weight(sums, counts)
    for average, new in ((codebook.cluster_size, counts), (codebook.embed_avg, sums)):
        if accum_ema_update:
            # The library keeps what waits for the next step in the gradients of the averages.
            average.grad = new if average.grad is None else average.grad.add_(new)
        else:
            _average_in(average, new, codebook.decay, ema_update_weight)


def _average_in(average: Tensor, new: Tensor, decay: float, weight: Tensor | float | None) -> None:
    if average.grad is not None:
        new.add_(average.grad)
        average.grad = None
    share: Tensor | float = 1.0 - decay
    if isinstance(weight, Tensor):
        weight = weight[None] if weight.dim() == 1 else weight
        if weight.shape != average.shape[:2]:
            raise AssertionError(
                f"ema_update_weight must be {list(average.shape[:2])}, got {list(weight.shape)}"
            )
        share = share * weight.view(*weight.shape, *[1] * (average.dim() - 2))
    elif weight is not None:
        share = share * weight
    # Through .data, as the library does: a backward pass that is still to come may have saved it.
    average.data.lerp_(new.to(average), share)


def _update_indices(
    original: Callable[..., Any],
    codebook: Any,
    x: Tensor,
    embed_ind: Tensor,
    mask: Tensor | None = None,
    ema_update_weight: Any = None,
    accum_ema_update: bool = False,
    ema_update: bool | None = None,
) -> None:
    """Codebook.update_indices: learn from vectors whose codes are known."""
    x = x.float()
    x, embed_ind = (x, embed_ind) if x.dim() > 3 else (x[None], embed_ind[None])
    rows = x.detach().flatten(1, -2)
    codebook.update_codebook(
        rows,
        embed_ind.flatten(1).clamp(min=0),
        mask=_of_rows(mask, rows),
        ema_update_weight=ema_update_weight,
        accum_ema_update=accum_ema_update,
        ema_update=ema_update,
    )


def _init_embed(
    original: Callable[..., Any], codebook: Any, data: Tensor, mask: Tensor | None = None
) -> None:
    """Codebook.init_embed_: k-means, once, over data [C, n, d] of which mask [C, n] counts."""
    if codebook.initted:
        return
    if mask is not None:
        data = data[mask].unflatten(0, (len(data), -1))
    size = codebook.codebook_size
    if data.shape[-2] < size:
        importlib.import_module("loguru").logger.warning(
            f"k-means init received {data.shape[-2]} vectors for a codebook of {size} - "
            "duplicates will be sampled"
        )
    data = data.detach()
    codes = codebook.sample_fn(data, size)
    counts = codes.new_zeros(codes.shape[:-1])
    metric: Literal["dot", "euclidean"] = "dot" if codebook.use_cosine_sim else "euclidean"
    for _ in range(codebook.kmeans_iters):
        chosen = functional.nearest_code(data, codes, metric=metric).indices
        sums, counts = functional.code_statistics(data, chosen, codes)
        codebook.kmeans_all_reduce_fn(counts)
        means = sums / counts.clamp(min=1)[..., None]
        codebook.kmeans_all_reduce_fn(means)
        if codebook.use_cosine_sim:
            means = torch.nn.functional.normalize(means, dim=-1, eps=1e-6)
        codes = torch.where((counts == 0)[..., None], codes, means)
    codebook.embed_avg.data.copy_(codes * counts[..., None])
    codebook.cluster_size.data.copy_(counts)
    codebook.update_ema()
    codebook.initted.data.fill_(True)


def _then_forget(original: Callable[..., Any], codebook: Any, *args: Any, **kwargs: Any) -> Any:
    """A method that writes codes in a way that torch does not count."""
    result = original(codebook, *args, **kwargs)
    forget(codebook)
    return result


def sizes(codebook: Any) -> str:
    """What a report shows of a codebook."""
    books, size, dim = codebook.embed.shape
    return f"K={size}, D={dim}" + (f", {books} books" if books > 1 else "")


def reason_to_leave(codebook: Any) -> str | None:
    """Return why a codebook must be left alone; None if it need not."""
    taken = list(inspect.signature(type(codebook).forward).parameters)
    if taken != _PARAMETERS:
        return f"its forward is not that of version 1.32: it takes {', '.join(taken[1:])}"
    if not _chooses_as_the_library(codebook):
        return "its gumbel_sample is not the library's"
    return None


_PARAMETERS = [name for name in inspect.signature(_forward).parameters if name != "original"]
_PARAMETERS[0] = "self"


def _searched(
    codebook: Any,
    result: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    sample_codebook_temp: float | None = None,
    mask: Tensor | None = None,
    freeze_codebook: bool = False,
    codebook_transform_fn: Callable[..., Tensor] | None = None,
    *averaging: Any,
    topk: int | None = None,
    **others: Any,
) -> Search | None:
    """The search of a call in eval; None if each vector had codes of its own."""
    if codebook_transform_fn is not None:
        return None
    indices = result[1] if topk is None else result[1][..., 0]
    codes = _codes(codebook, torch.float32).detach()
    vectors, indices = (x, indices) if x.dim() > 3 else (x[None], indices[None])
    rows = vectors.float().flatten(1, -2)
    counted = _of_rows(mask, rows)
    indices = indices.flatten(1)
    if counted is not None:
        rows, indices = rows[:, counted[0]], indices[:, counted[0]]
    if len(codes) == 1:
        rows, codes, indices = rows.flatten(0, 1), codes[0], indices.flatten()
    if codebook.use_cosine_sim:
        rows, codes = as_euclidean(rows.double(), codes.double(), "dot")
    return Search(rows, codes, indices)


RECIPE = Recipe(
    "vector_quantize_pytorch.vector_quantize_pytorch.Codebook",
    {
        "forward": _forward,
        "init_embed_": _init_embed,
        "track_cluster_size_and_embed_avg": _track,
        "update_indices": _update_indices,
        "update_ema": _then_forget,
        "replace": _then_forget,
    },
    relies_on=("update_codebook", "update_affine", "expire_codes_"),
    refusal=reason_to_leave,
    sizes=lambda codebook: f"{sizes(codebook)}, in calls of an accelerated VectorQuantize",
    observed=("forward", _searched),
)
