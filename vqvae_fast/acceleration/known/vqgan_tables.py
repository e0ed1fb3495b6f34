"""What the quantizers of VQGAN's family have in common: which loss beta weighs, other indices."""

from typing import Any

from torch import Tensor

from vqvae_fast.acceleration.known.embedding_tables import Codes, on_images, search_on_images
from vqvae_fast.acceleration.recipe import Search


def quantize_images(module: Any, z: Tensor, codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize z [B, D, height, width] as a module with beta, legacy, remap, sane_index_shape does.

    Returns:
        quantized [B, D, height, width], loss, indices in the module's shape and numbering.
    """
    # By mistake beta weighs the codebook's term, unless legacy is off.
    weights = (1.0, module.beta) if module.legacy else (module.beta, 1.0)
    found = on_images(module, z, codes, commitment_weight=weights[0], codebook_weight=weights[1])
    indices = found.indices
    if module.remap is not None:
        indices = module.remap_to_used(indices.reshape(z.shape[0], -1)).reshape(-1, 1)
    if module.sane_index_shape:
        indices = indices.reshape(z.shape[0], *z.shape[2:])
    return found.quantized, found.loss, indices


def searched_images(module: Any, z: Tensor, codebook: Tensor, indices: Tensor) -> Search | None:
    """The :class:`Search` of such a module; None if it renumbers its codes."""
    return None if module.remap is not None else search_on_images(z, codebook, indices)
