"""The Descript Audio Codec (DAC), in its own package and in Hugging Face's transformers.

Its stages project, search and project back, so each is searched for itself. What is replaced is the
search alone: losses, dropout of stages and gradients are computed as before.

A code of zeros has no direction, and stays zero when it is scaled. The package's search may choose
it, as this one may. transformers' does so hardly ever, because it adds the squared lengths of codes
where it should subtract them, which matters for no other code.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast.acceleration.kept import check_dimensions, nearest_made
from vqvae_fast.acceleration.recipe import Recipe, Search


def _indices(module: Any, latents: Tensor) -> Tensor:
    """[B, D, T] -> [B, T]: the nearest codes, vectors and codes being scaled to unit length."""
    check_dimensions(latents, 3)
    codes = module.codebook.weight
    z = nn_functional.normalize(latents.transpose(1, 2), dim=-1)
    return nearest_made(module, z, [codes], lambda: nn_functional.normalize(codes))


def _decode_latents(original: Callable[..., Any], module: Any, latents: Tensor) -> Any:
    """Descript's VectorQuantize.decode_latents: [B, D, T] -> [B, D, T], [B, T]."""
    indices = _indices(module, latents)
    return module.decode_code(indices), indices


def _decode_latents_in_transformers(
    original: Callable[..., Any], module: Any, hidden_states: Tensor
) -> Any:
    """DacVectorQuantize.decode_latents: [B, D, T] -> [B, D, T], [B, T]."""
    if hasattr(module.codebook, "_hf_hook"):  # the original has it bring the codes from elsewhere
        return original(module, hidden_states)
    indices = _indices(module, hidden_states)
    return module.codebook(indices).transpose(1, 2), indices


def _searched(module: Any, result: Any, latents: Tensor) -> Search:
    z = nn_functional.normalize(latents.transpose(1, 2).flatten(0, 1))
    return Search(z, nn_functional.normalize(module.codebook.weight), result[1].flatten())


def _sizes(module: Any) -> str:
    return f"K={module.codebook.weight.shape[0]}, D={module.codebook.weight.shape[1]}"


RECIPES = (
    Recipe(
        "dac.nn.quantize.VectorQuantize",
        {"decode_latents": _decode_latents},
        sizes=_sizes,
        observed=("decode_latents", _searched),
    ),
    Recipe(
        "transformers.models.dac.modeling_dac.DacVectorQuantize",
        {"decode_latents": _decode_latents_in_transformers},
        sizes=_sizes,
        observed=("decode_latents", _searched),
    ),
)
