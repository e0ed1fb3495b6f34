"""What the residual quantizers of audio codecs have in common: stages that only search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.kept import residual_nearest
from vqvae_fast.acceleration.replaced import is_replaced


def encode_stages(
    module: nn.Module,
    embeddings: Tensor,
    stages: Sequence[Any],
    codebooks: Sequence[nn.Module],
    books: Sequence[Tensor],
    number: int,
    kind: str,
) -> Tensor | None:
    """Return the codes of all stages at once.

    Args:
        module: the residual quantizer, for which the books are kept packed.
        embeddings: [B, D, T].
        stages: its stages.
        codebooks: the modules of the stages that have the codes.
        books: the codes [K, D], each the same object in each call.
        number: how many of them are used, as for a slice.
        kind: the class of a stage.

    Returns:
        int64 [Q, B, T]; None where the stages do more than find the nearest codes in float32.
    """
    used = len(stages[:number])
    plain = all(type(stage).__name__ == kind and "encode" not in vars(stage) for stage in stages)
    if used == 0 or not plain or embeddings.dim() != 3 or not all(map(_only_searches, codebooks)):
        return None
    if any(part.dtype != torch.float32 for part in (embeddings, *books)):
        return None
    if len({book.shape for book in books}) > 1 or any(b.device != embeddings.device for b in books):
        return None
    indices, _ = residual_nearest(module, embeddings.transpose(1, 2), books, used, codebooks)
    return indices.permute(2, 0, 1).contiguous()


def _only_searches(codebook: nn.Module) -> bool:
    """Whether a codebook is accelerated, and no subclass or object with methods of its own."""
    searches = ("quantize", "_quantize")
    return (
        type(codebook).__name__.endswith("EuclideanCodebook")
        and any(is_replaced(codebook, name) for name in searches)
        and vars(codebook).keys().isdisjoint((*searches, "encode", "decode"))
    )
