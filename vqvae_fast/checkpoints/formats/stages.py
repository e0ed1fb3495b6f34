"""Makes a ResidualVQ of the stages of a residual quantizer, which all libraries share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.checkpoints.weights import Weights


class Linear(NamedTuple):
    """A projection: weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor


class Stage(NamedTuple):
    """The weights of one stage.

    Attributes:
        embed: the codes, [K, D].
        cluster_size: [K], vectors per batch; None for a codebook without moving averages.
        embed_avg: [K, D], sums of vectors; None likewise.
        initted: whether the codebook has its codes: k-means has run, or is not used.
        project_in: the projection to the codebook's dimension; None if it is the module's.
        project_out: the projection back.
    """

    embed: Tensor
    cluster_size: Tensor | None = None
    embed_avg: Tensor | None = None
    initted: bool = True
    project_in: Linear | None = None
    project_out: Linear | None = None


def take_projection(weights: Weights, name: str) -> Linear | None:
    """The nn.Linear of this name, or None."""
    if f"{name}.weight" not in weights:
        return None
    return Linear(weights.take(f"{name}.weight", None, None), weights.take(f"{name}.bias", None))


def sizes(stages: list[Stage]) -> dict[str, Any]:
    """The arguments of ResidualVQ that the stages' shapes show.

    Raises:
        ValueError: the stages differ in the dimension of their codes.
    """
    dims = {stage.embed.shape[1] for stage in stages}
    if len(dims) > 1:
        raise ValueError(f"all stages must have codes of one dimension, got {sorted(dims)}")
    (dim,) = dims
    books = tuple(stage.embed.shape[0] for stage in stages)
    arguments: dict[str, Any] = {"dim": dim}
    if len(set(books)) == 1:
        arguments |= {"num_quantizers": len(books), "codebook_size": books[0]}
    else:
        arguments["codebook_size"] = books
    projection = stages[0].project_in
    if projection is not None:
        arguments |= {
            "dim": projection.weight.shape[1],
            "codebook_dim": dim,
            "project_per_stage": True,
        }
    if not all(stage.initted for stage in stages):
        arguments["kmeans_init"] = True
    return arguments


def state_of(stages: list[Stage], prefix: str = "") -> dict[str, Tensor]:
    """The state dict of that ResidualVQ."""
    state: dict[str, Tensor] = {}
    for number, stage in enumerate(stages):
        layer = f"{prefix}layers.{number}."
        count = len(stage.embed)
        # A stage without averages gets those of a new codebook.
        size = torch.ones(count) if stage.cluster_size is None else stage.cluster_size
        average = stage.embed.clone() if stage.embed_avg is None else stage.embed_avg
        state |= {
            f"{layer}_codebook.initted": torch.tensor(stage.initted),
            f"{layer}_codebook.cluster_size": size[None],
            f"{layer}_codebook.embed_avg": average[None],
            f"{layer}_codebook.embed": stage.embed[None],
        }
        for name, projection in (
            ("project_in", stage.project_in),
            ("project_out", stage.project_out),
        ):
            if projection is not None:
                state |= {
                    f"{layer}{name}.weight": projection.weight,
                    f"{layer}{name}.bias": projection.bias,
                }
    return state
