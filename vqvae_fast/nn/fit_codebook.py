"""Codebooks of quantizers that start from k-means over data."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.clustering import KMeans
from vqvae_fast.clustering.rows import first_part
from vqvae_fast.distributed import is_distributed, summed
from vqvae_fast.nn.codebook.affine_codebook import AffineCodebook
from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.drop_in.residual_sim_vq import ResidualSimVQ
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.drop_in.sim_vq import SimVQ
from vqvae_fast.nn.drop_in.split_residual_vq import SplitResidualVQ
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.checks import refuse
from vqvae_fast.nn.vqvae.vector_quantizer import VectorQuantizer

# By so much of the largest number in k-means' codes a SimVQ's codes may differ from them.
_REACHED = 1e-3


class _Inputs:
    """Batches after some steps.

    Args:
        batches: tensors, or tuples that begin with one.
        kept: the batches are in memory, and so are those after a further step.
        step: is applied to each batch when it is read.

    Raises:
        TypeError: when read, a batch is none.
        ValueError: when read, there are no batches, or not as many as at the first reading.
    """

    def __init__(
        self, batches: Iterable[Any], kept: bool, step: Callable[[Tensor], Tensor] = lambda x: x
    ):
        self.batches, self.kept, self.step = batches, kept, step
        self._count: int | None = None  # the number of batches of the first reading

    def __iter__(self) -> Iterator[Tensor]:
        count = 0
        for batch in self.batches:
            first = first_part(batch)
            if not isinstance(first, Tensor):
                raise TypeError(
                    f"batches must be tensors or (tensor, ...) tuples, got {type(first).__name__}"
                )
            count += 1
            yield self.step(first)
        if self._count not in (None, count):
            raise ValueError(
                "data must give the same batches at every reading: "
                f"gave {self._count}, then {count}"
            )
        if count == 0:
            raise ValueError("data must have batches, got none")
        self._count = count

    def then(self, step: Callable[[Tensor], Tensor]) -> "_Inputs":
        """The same batches after one step more."""
        if self.kept:
            return _Inputs([step(x) for x in self], True)
        return _Inputs(self, False, step)


@torch.no_grad()
def fit_codebook(
    module: nn.Module, data: Tensor | Iterable[Any], *, max_iter: int = 20, **arguments: Any
) -> nn.Module:
    """Start the codebooks of a quantizer from k-means over data, in place of random codes.

    Vectors pass the module's projections, heads and groups, as in its forward pass in eval, and
    each stage of residual quantization gets what the stages before have left. With cosine
    similarity codes are directions. Moving averages then stand at the codes, with the number of
    vectors of a batch that chose each, and k-means with which the module was to start in training
    does not happen any more. Packs of a frozen module are made anew.

    Args:
        module: a :class:`VectorQuantizer`, :class:`VectorQuantize`, :class:`ResidualVQ`,
            :class:`GroupedResidualVQ` or :class:`SplitResidualVQ`; or a :class:`SimVQ` or
            :class:`ResidualSimVQ` whose ``codebook_transform`` is a ``torch.nn.Linear`` that
            reaches the codes: then the frozen codes are those that it maps to them.
        data: an input of ``module.forward``, or an iterable of them that can be read many times,
            such as a DataLoader (of tuples the first part). It is read once a round, and passes
            all earlier stages then. What a tensor's stages have left is kept in memory.
        max_iter: the largest number of rounds for each book.
        **arguments: further arguments of :class:`vqvae_fast.KMeans`, such as ``tol``, ``n_init``,
            ``random_state``, ``init_size``, ``synced`` and ``verbose``.

    Returns:
        The same module.

    Raises:
        TypeError: the module is none of these quantizers; data is neither a tensor nor an iterable
            of batches, or can be read only once.
        ValueError: vectors are not compared with the stored codes, or several stages share them;
            there are fewer vectors than codes; a vector is not finite; data has no batches, or
            other numbers of batches or vectors at a later reading. Books that were done by then are
            changed.
    """
    refused = {"n_clusters", "metric", "init", "device"} & arguments.keys()
    if refused:
        raise TypeError(f"fit_codebook itself chooses {', '.join(sorted(refused))}")
    if isinstance(data, Iterator):
        raise TypeError(
            "data must be a tensor or an iterable that can be read once a round, got "
            f"{type(data).__name__}, which can be read only once"
        )
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be a tensor or an iterable, got {type(data).__name__}")
    _check(module)
    in_memory = isinstance(data, Tensor)
    inputs = _Inputs([data] if in_memory else data, in_memory)
    training = [part for part in module.modules() if part.training]
    module.eval()  # a stage's forward pass then changes nothing
    try:
        _fit(module, inputs, {"max_iter": max_iter, **arguments})
    finally:
        for part in training:
            part.training = True
    return module


def _check(module: nn.Module) -> None:
    """Raise for a module whose codes k-means cannot give."""
    if isinstance(module, VectorQuantize):
        refuse(
            (
                module._codebook.vq_bridge is not None,
                "fit_codebook needs a quantizer without vq_bridge, a network that changes the "
                "codes before vectors are compared with them",
            ),
            (
                isinstance(module._codebook, AffineCodebook),
                "fit_codebook needs a quantizer without affine_param, which moves the codes before "
                "vectors are compared with them",
            ),
            (
                module.cosine_search,
                "fit_codebook needs a quantizer without cosine_search, which compares directions, "
                "but gives codes of any length, which k-means of directions does not find",
            ),
        )
    elif isinstance(module, ResidualVQ):
        refuse(
            (
                module.shared_codebook,
                "fit_codebook needs a ResidualVQ without shared_codebook: k-means finds a book for "
                "each stage",
            ),
            (
                module.implicit_neural_codebook,
                "fit_codebook needs a ResidualVQ without implicit_neural_codebook, which gives "
                "every vector codes of its own",
            ),
        )
        for stage in module.layers:
            _check(stage)
    elif isinstance(module, GroupedResidualVQ):
        for rvq in module.rvqs:
            _check(rvq)
    elif isinstance(module, SplitResidualVQ):
        _check(module.rvq_first.vq)
        _check(module.rvq_rest.vq)
    elif isinstance(module, ResidualSimVQ):
        for stage in module.layers:
            _check(stage)
    elif isinstance(module, SimVQ):
        linear = isinstance(module.code_transform, nn.Linear)
        refuse(
            (
                not linear,
                "fit_codebook needs a SimVQ whose codebook_transform is a torch.nn.Linear, got "
                f"{type(module.code_transform).__name__}",
            )
        )
    elif not isinstance(module, VectorQuantizer):
        raise TypeError(
            "module must be a VectorQuantizer, VectorQuantize, ResidualVQ, GroupedResidualVQ, "
            f"SplitResidualVQ, SimVQ or ResidualSimVQ, got {type(module).__name__} (a "
            "ShardedVectorQuantizer, which has its codes in several processes, starts from k-means "
            "with kmeans_init=True; of a model pass its quantizer)"
        )


def _fit(module: nn.Module, inputs: _Inputs, arguments: dict[str, Any]) -> None:
    if isinstance(module, VectorQuantizer):
        rows = inputs.then(lambda x: x.movedim(1, -1).flatten(0, -2))
        codes, sizes = _clustered(rows, module.n_e, "euclidean", arguments)
        module.set_codebook(codes, sizes.to(codes.dtype))
    elif isinstance(module, VectorQuantize):
        _fit_books(module, inputs, arguments)
    elif isinstance(module, ResidualVQ):
        left = inputs.then(lambda x: module.project_in(module._layout.tokens(x)[0]))
        _fit_stages(module.layers, left, arguments)
    elif isinstance(module, ResidualSimVQ):
        _fit_stages(module.layers, inputs, arguments)
    elif isinstance(module, GroupedResidualVQ):
        for group, rvq in enumerate(module.rvqs):
            _fit(rvq, inputs.then(_Part(module.groups, group, module.split_dim)), arguments)
    elif isinstance(module, SplitResidualVQ):
        for half in (module.rvq_first, module.rvq_rest):
            _fit(half.vq, inputs.then(half.enter), arguments)
    else:
        assert isinstance(module, SimVQ)
        rows = inputs.then(lambda x: module._layout.tokens(x)[0].flatten(0, -2))
        codes, _ = _clustered(rows, module.codebook_size, "euclidean", arguments)
        _reach(module, codes)


def _fit_stages(stages: nn.ModuleList, left: _Inputs, arguments: dict[str, Any]) -> None:
    for stage in stages:
        _fit(stage, left, arguments)
        left = left.then(_Behind(stage))


class _Part:
    """Takes one of the groups of a GroupedResidualVQ's input."""

    def __init__(self, groups: int, group: int, dim: int):
        self.groups, self.group, self.dim = groups, group, dim

    def __call__(self, x: Tensor) -> Tensor:
        return x.chunk(self.groups, dim=self.dim)[self.group]


class _Behind:
    """Takes what a stage has left of its input."""

    def __init__(self, stage: nn.Module):
        self.stage = stage

    def __call__(self, x: Tensor) -> Tensor:
        left: Tensor = x - self.stage(x)[0]
        return left


def _fit_books(module: VectorQuantize, inputs: _Inputs, arguments: dict[str, Any]) -> None:
    """Fit the books of separate heads, or the only one."""
    rows = inputs.then(lambda x: module._rows(module.project_in(module._layout.tokens(x)[0])))
    metric = "cosine" if module.use_cosine_sim else "euclidean"
    codebook = module._codebook
    fitted = []
    for book in range(codebook.num_codebooks):
        # The default argument is the book of this turn, not of the last one.
        of_book = rows.then(lambda x, book=book: x[book].flatten(0, -2))  # type: ignore[misc]
        fitted.append(_clustered(of_book, codebook.codebook_size, metric, arguments))
    codes, sizes = (torch.stack(part) for part in zip(*fitted, strict=True))
    codebook.pending = None
    codebook.cluster_size.copy_(sizes)
    codebook.set_codes(codes.to(codebook.embed))


def _clustered(
    rows: _Inputs, num_codes: int, metric: Any, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Codes [K, d], and how many vectors of a batch chose each, [K]."""
    model = KMeans(num_codes, metric=metric, **arguments)
    model.fit(next(iter(rows)) if rows.kept else rows)
    codes: Tensor = model.cluster_centers_
    counts, batches = torch.zeros(num_codes, dtype=torch.int64, device=codes.device), 0
    for batch in rows:
        counts += torch.bincount(model.predict(batch), minlength=num_codes)
        batches += 1
    if arguments.get("synced") and is_distributed():
        (counts,) = summed(counts)
    # A code without vectors counts as if it had one: a size of 0 would divide by it.
    return codes, counts.clamp(min=1) / batches


def _reach(module: SimVQ, codes: Tensor) -> None:
    """Write the frozen codes that the module's transform maps to the codes [K, D].

    Raises:
        ValueError: there are none.
    """
    transform = module.code_transform
    assert isinstance(transform, nn.Linear)
    weight, wanted = transform.weight.double(), codes.double()
    if transform.bias is not None:
        wanted = wanted - transform.bias.double()
    frozen = torch.linalg.lstsq(weight, wanted.T).solution.T
    missed = (frozen @ weight.T - wanted).abs().max() / codes.abs().max()
    refuse(
        (
            not missed <= _REACHED,
            "fit_codebook needs a SimVQ whose codebook_transform reaches all codes; "
            f"Linear({transform.in_features}, {transform.out_features}) misses those of k-means by "
            f"{float(missed):.1%} of the largest number",
        )
    )
    module.frozen_codebook.copy_(frozen)
