"""What recipes have in common that recognise a quantizer by its shape: its attributes."""

import torch
from torch import Tensor, nn


def has_table(module: nn.Module, *attributes: str) -> bool:
    """Whether a module has an ``embedding`` of [n_e, e_dim], ``beta`` and other attributes.

    Not those of this package, which have such attributes, too.
    """
    # Not getattr: in other classes embedding is a property, which may compute and keep something.
    table = module._modules.get("embedding")
    return (
        isinstance(table, nn.Embedding)
        and all(hasattr(module, name) for name in ("n_e", "e_dim", "beta", *attributes))
        and [*table.weight.shape] == [module.n_e, module.e_dim]
        and not type(module).__module__.startswith("vqvae_fast.")
    )


def images_near(codebook: Tensor, height: int = 4, width: int = 4) -> Tensor:
    """Two random images [2, D, height, width] whose vectors are spread as the codes [K, D] are."""
    codes = codebook.detach()
    mean = codes.mean(dim=0)
    spread = codes.std(unbiased=False).clamp(min=torch.finfo(codes.dtype).tiny)
    # Drawn by the CPU, so that all devices have the same.
    drawn = torch.randn(2, height, width, codes.shape[1]).to(codes)
    return (mean + spread * drawn).permute(0, 3, 1, 2)
