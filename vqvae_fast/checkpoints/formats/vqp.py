"""vector-quantize-pytorch's VectorQuantize, ResidualVQ and GroupedResidualVQ: -> ours.

Our classes have the same state dicts. Older versions of the library are brought to today's layout:
their ``initted`` is [1] and float, today's is 0-d and bool; their codebooks have no axis of heads.
These arguments show in the weights: sizes, projections, heads, affine parameters, neural codebooks,

* cosine similarity, if all codes have length 1;
* a codebook learned by gradient, if it stands before its buffers, as parameters do. A file that is
  sorted by name, such as .safetensors, does not show this: give ``learnable_codebook=True,
  ema_update=False``;
* a shared codebook, if all stages hold the same codes.

Two arguments do not show and must be given as options: ``heads`` that share a codebook without
projections, and modules that are passed to the constructor (``vq_bridge``).
"""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.weights import Weights

# Codes have length 1 if none differs from it by more, also in float16.
_UNIT = 1e-3
_BOOK = "_codebook."


def _single(weights: Weights, options: dict[str, Any]) -> Description:
    codebook = _codebook(weights, options)
    num_books, size, dim = weights["_codebook.embed"].shape
    projection = _inner(weights)
    if projection is None:
        heads = num_books if num_books > 1 else options.get("heads", 1)
        sizes = {"dim": dim * heads, "codebook_dim": dim, "heads": heads}
    else:
        inner, outer = projection
        sizes = {"dim": outer, "codebook_dim": dim, "heads": inner // dim}
        if "project_in.1.weight" in weights:
            sizes["layernorm_after_project_in"] = True
    if num_books > 1:
        sizes["separate_codebook_per_head"] = True
    return "VectorQuantize", {**sizes, "codebook_size": size, **codebook}, weights.take_all()


def _residual(weights: Weights, options: dict[str, Any]) -> Description:
    layers = weights.numbered("layers")
    codebook = _codebook(layers[0], options)
    for layer in layers[1:]:
        _codebook(layer, options)
    books = [layer["_codebook.embed"] for layer in layers]
    if any(book.shape[0] != 1 or book.shape[2] != books[0].shape[2] for book in books):
        shapes = [list(book.shape) for book in books]
        raise ValueError(f"all codebooks must be [1, K, D] with the same D, got {shapes}")
    dim = books[0].shape[2]
    arguments = {"dim": dim, "codebook_dim": dim, **codebook}
    outer, of_stage = _inner(weights), _inner(layers[0])
    if outer is not None:
        arguments["dim"] = outer[1]
    elif of_stage is not None:
        arguments |= {"dim": of_stage[1], "project_per_stage": True}
    sizes = tuple(book.shape[1] for book in books)
    if len(set(sizes)) == 1:
        arguments |= {"num_quantizers": len(sizes), "codebook_size": sizes[0]}
    else:
        arguments["codebook_size"] = sizes
    if "mlps.0.proj_in.weight" in weights:
        arguments |= _neural(weights)
    elif "kmeans_init" not in codebook and _all_equal(books):
        arguments["shared_codebook"] = True
    state = weights.take_all()
    for number, layer in enumerate(layers):
        state |= {f"layers.{number}.{name}": t for name, t in layer.take_all().items()}
    return "ResidualVQ", arguments, state


def _grouped(weights: Weights, options: dict[str, Any]) -> Description:
    state: dict[str, Tensor] = {}
    groups = []
    for number, group in enumerate(weights.numbered("rvqs")):
        _, arguments, tensors = _residual(group, options)
        groups.append(arguments)
        state |= {f"rvqs.{number}.{name}": tensor for name, tensor in tensors.items()}
    if any(other != groups[0] for other in groups):
        raise ValueError(f"all groups must have the same sizes, got {groups}")
    dim = groups[0]["dim"] * len(groups)
    return "GroupedResidualVQ", {**groups[0], "dim": dim, "groups": len(groups)}, state


def _codebook(weights: Weights, options: dict[str, Any]) -> dict[str, Any]:
    """Bring a codebook into today's shape, in place; return the arguments that it shows."""
    order = [name for name in weights if name.startswith(_BOOK)]
    embed = weights["_codebook.embed"]
    if embed.dim() == 2:
        for name in ("embed", "embed_avg", "cluster_size"):
            weights.replace(_BOOK + name, weights[_BOOK + name][None])
    embed = weights.shaped("_codebook.embed", None, None, None)
    initted = weights.take_flag("_codebook.initted")
    weights.replace("_codebook.initted", torch.tensor(initted))
    arguments: dict[str, Any] = {} if initted else {"kmeans_init": True}
    if "_codebook.codebook_mean" in weights:
        arguments["affine_param"] = True
    # A parameter with orthogonal regularisation can have moving averages, too.
    asks = options.keys() & {"orthogonal_reg_weight", "learnable_codebook", "ema_update"}
    if order[:2] == ["_codebook.embed", "_codebook.initted"] and not asks:
        arguments |= {"learnable_codebook": True, "ema_update": False}
    elif initted and ((embed.float().norm(dim=-1) - 1).abs() < _UNIT).all():
        arguments["use_cosine_sim"] = True
    return arguments


def _all_equal(books: list[Tensor]) -> bool:
    return len(books) > 1 and all(torch.equal(book, books[0]) for book in books[1:])


def _inner(weights: Weights) -> tuple[int, int] | None:
    """[codebook's dimension times heads, module's dimension] of the projection, if there is one."""
    for name in ("project_in.weight", "project_in.0.weight"):
        if name in weights:
            inner, outer = weights.shaped(name, None, None).shape
            return inner, outer
    return None


def _neural(weights: Weights) -> dict[str, Any]:
    """Take the networks of implicit neural codebooks, whose codebook is learned by gradient."""
    depth = len({name.split(".")[3] for name in weights if name.startswith("mlps.0.layers.")})
    hidden = weights.shaped("mlps.0.layers.0.0.weight", None, None).shape[0]
    return {
        "implicit_neural_codebook": True,
        "mlp_kwargs": {"dim_hidden": hidden, "depth": depth},
    }


SINGLE = Format(
    "vector-quantize-pytorch's VectorQuantize (_codebook.embed)",
    anchor(r"_codebook\.embed"),
    _single,
)
RESIDUAL = Format(
    "vector-quantize-pytorch's ResidualVQ (layers.0._codebook.embed)",
    anchor(r"layers\.\d+\._codebook\.embed"),
    _residual,
)
GROUPED = Format(
    "vector-quantize-pytorch's GroupedResidualVQ (rvqs.0.layers.0._codebook.embed)",
    anchor(r"rvqs\.\d+\.layers\.\d+\._codebook\.embed"),
    _grouped,
)
