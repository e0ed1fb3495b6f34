"""How far k-means has collected the vectors from which it makes the codes."""

from typing import NamedTuple

from torch import nn

from vqvae_fast.nn import KMeansInit


class Collection(NamedTuple):
    """The progress of a collection that has not ended.

    Attributes:
        collected: vectors so far.
        wanted: vectors that k-means starts from.
    """

    collected: int
    wanted: int


def collectors(model: nn.Module) -> dict[str, KMeansInit]:
    """The parts of a model that collect vectors for k-means, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, KMeansInit)}


def collection_of(model: nn.Module) -> Collection | None:
    """How far k-means' collection is; None if the codebook has its codes."""
    for part in collectors(model).values():
        if not part.done:
            return Collection(len(part.samples), part.num_samples)
    return None
