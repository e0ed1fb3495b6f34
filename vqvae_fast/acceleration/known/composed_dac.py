"""DAC's residual quantizers with the projections of their stages composed, in eval.

A call is one product before all stages and one behind them. Losses, and what the stages see, which
are results of the quantizers, too, are made of the codes by small products.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional
from torch.nn.utils.weight_norm import WeightNorm

from vqvae_fast.acceleration.kept import composed, forget, times_forgotten
from vqvae_fast.acceleration.recipe import Recipe, name_of
from vqvae_fast.acceleration.replaced import is_replaced
from vqvae_fast.autocast import is_autocast
from vqvae_fast.nn.drop_in.composed_stages import ComposedStages
from vqvae_fast.nn.drop_in.plain_stage import is_watched

_STAGES = (
    "transformers.models.dac.modeling_dac.DacVectorQuantize",
    "dac.nn.quantize.VectorQuantize",
)


class _Directions(NamedTuple):
    """The search of a stage: it compares vectors and codes that are scaled to unit length."""

    metric: str = "cosine"

    @staticmethod
    def compared(codes: Tensor) -> Tensor:
        """Scale codes; those of zeros stay zero, as in the model."""
        return nn_functional.normalize(codes.double(), dim=-1).float()


class _Stage(NamedTuple):
    """A stage, as :class:`vqvae_fast.nn.drop_in.composed_stages.Composable`."""

    weight_in: Tensor
    bias_in: Tensor | None
    weight_out: Tensor
    bias_out: Tensor | None
    codes: Tensor
    search: _Directions = _Directions()


class _Quantized(NamedTuple):
    """What the stages give.

    Attributes:
        total: [B, C, T], the sum of what they give.
        indices: [B, Q, T].
        latents: [B, Q * D, T], what they see.
        errors: [B, Q * D, T], the latents minus their codes.
    """

    total: Tensor
    indices: Tensor
    latents: Tensor
    errors: Tensor


def _forward_in_transformers(
    original: Callable[..., Any],
    module: Any,
    hidden_state: Tensor,
    n_quantizers: int | None = None,
) -> Any:
    """DacResidualVectorQuantizer.forward: [B, C, T] -> quantized, codes, latents, losses [B]."""
    found = _quantize(module, hidden_state, n_quantizers)
    if found is None:
        return original(module, hidden_state, n_quantizers)
    stages = found.indices.shape[1]
    losses = (found.errors.square().mean() * stages).repeat(len(hidden_state))
    return found.total, found.indices, found.latents, losses, losses.clone()


def _forward(
    original: Callable[..., Any], module: Any, z: Tensor, n_quantizers: int | None = None
) -> Any:
    """Descript's ResidualVectorQuantize.forward: [B, C, T] -> the same, with losses of no shape."""
    found = _quantize(module, z, n_quantizers)
    if found is None:
        return original(module, z, n_quantizers)
    loss = found.errors.square().mean() * found.indices.shape[1]
    return found.total, found.indices, found.latents, loss, loss.clone()


def _quantize(module: Any, vectors: Tensor, number: int | None) -> _Quantized | None:
    """Quantize vectors [B, C, T] in ``number`` stages; None where the model itself must do it."""
    if torch.compiler.is_compiling():
        return None
    if module.training:
        forget(module)
        return None
    number = module.n_codebooks if number is None else number
    if not _is_served(vectors) or not isinstance(number, int):
        return None
    if not 0 < number <= len(module.quantizers):
        return None
    stages = list(module.quantizers)[:number]
    parts = [_tensors(stage) for stage in stages]
    sources = [tensor for tensors in parts for tensor in tensors or ()]
    if None in parts or any(tensor.device != vectors.device for tensor in sources):
        return None
    if len({tuple(tensor.shape for tensor in tensors or ()) for tensors in parts}) > 1:
        return None
    forgotten = [times_forgotten(stage) for stage in stages]
    form = composed(module, sources, lambda: [_made(stage) for stage in stages], forgotten)
    if form is None or vectors.shape[1] != len(form.entry):
        return None
    indices, total = form.quantize(vectors.transpose(1, 2))
    latents, errors = _seen(form, vectors, indices)
    # The model subtracts a NaN or an infinity from itself, so its later stages give NaN.
    not_finite = (latents * 0).sum(dim=1, keepdim=True)
    latents[:, form.codebooks.shape[-1] :] += not_finite
    total = torch.add(total.transpose(1, 2), not_finite, out=vectors.new_empty(vectors.shape))
    return _Quantized(total, indices.transpose(1, 2).contiguous(), latents, errors)


def _is_served(vectors: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and vectors.dtype == torch.float32
        and vectors.dim() == 3
        and vectors.numel() > 0
        and not is_autocast(vectors.device.type)
    )


def _seen(form: ComposedStages, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """What the stages see of vectors [B, C, T] with these codes [B, T, Q], and less the codes."""
    stages, size, dim = form.codebooks.shape
    width, batch = stages * dim, len(vectors)
    offsets = torch.arange(0, stages * size, size, device=indices.device)
    codes = nn_functional.embedding(indices + offsets, form.codebooks.flatten(0, 1))
    codes = codes.flatten(2).transpose(1, 2)  # [B, Q * D, T]
    entry = form.entry[:, :width].t().expand(batch, -1, -1)
    taken = form.corrections.view(width, width).t().expand(batch, -1, -1)
    latents = torch.baddbmm(form.entry_bias[:width, None], entry, vectors)
    latents.baddbmm_(taken, codes, alpha=-1)
    return latents, latents - codes


def _tensors(stage: Any) -> list[Tensor] | None:
    """The tensors, all float32, that a stage is made of; None if it does more than it must."""
    parts = stage._modules
    codebook = parts["codebook"]
    if (
        name_of(type(stage)) not in _STAGES
        or not is_replaced(stage, "decode_latents")
        or "decode_latents" in vars(stage)
        or is_watched(stage, type(stage))
        or is_watched(codebook, nn.Embedding)
        or codebook.max_norm is not None
        or hasattr(codebook, "_hf_hook")
    ):
        return None
    tensors = [codebook._parameters.get("weight")]
    for convolution in (parts["in_proj"], parts["out_proj"]):
        if not _is_linear(convolution):
            return None
        tensors += convolution._parameters.values()
    found = [tensor for tensor in tensors if tensor is not None]
    are_wide = all(tensor.dtype == torch.float32 for tensor in found)
    return found if are_wide and tensors[0] is not None else None


def _is_linear(convolution: Any) -> bool:
    """Whether a convolution is a linear map of each vector; weight_norm may make its weight."""
    normalises = _weight_norm(convolution) is not None
    # A replica of DataParallel has no parameters.
    weight = convolution._parameters.get("weight_v" if normalises else "weight")
    others = (convolution._forward_hooks, convolution._backward_hooks)
    return (
        type(convolution) is nn.Conv1d
        and weight is not None
        and weight.shape[2:] == (1,)
        and (convolution.stride, convolution.padding, convolution.groups) == ((1,), (0,), 1)
        and len(convolution._forward_pre_hooks) == normalises
        and not any((*others, convolution._backward_pre_hooks))
        and "forward" not in vars(convolution)
    )


def _weight_norm(convolution: Any) -> WeightNorm | None:
    """What makes the weight before each call, if it is weight_norm of torch.nn.utils."""
    hooks = convolution._forward_pre_hooks.values()
    return next((hook for hook in hooks if type(hook) is WeightNorm), None)


def _made(stage: Any) -> _Stage:
    into, out = stage.in_proj, stage.out_proj
    return _Stage(_weight(into), into.bias, _weight(out), out.bias, stage.codebook.weight[None])


def _weight(convolution: Any) -> Tensor:
    """[out, in]."""
    normalised = _weight_norm(convolution)
    weight: Tensor = (
        convolution.weight if normalised is None else normalised.compute_weight(convolution)
    )
    return weight[..., 0]


def _reason_to_leave(module: Any) -> str | None:
    sizes = {tuple(stage.codebook.weight.shape) for stage in module.quantizers}
    if len(sizes) > 1:
        return "its stages have codebooks of different sizes, so their projections are not composed"
    return None


def _sizes(module: Any) -> str:
    size, dim = module.quantizers[0].codebook.weight.shape
    return f"{len(module.quantizers)} stages of K={size}, D={dim}, their projections composed"


def _recipe(name: str, forward: Callable[..., Any]) -> Recipe:
    return Recipe(
        name,
        {"forward": forward},
        sizes=_sizes,
        refusal=_reason_to_leave,
        composes_projections=True,
    )


RECIPES = (
    _recipe("dac.nn.quantize.ResidualVectorQuantize", _forward),
    _recipe(
        "transformers.models.dac.modeling_dac.DacResidualVectorQuantizer",
        _forward_in_transformers,
    ),
)
