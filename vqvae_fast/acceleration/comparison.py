"""Compares the codes that a model's own quantizers choose with the nearest ones in float64."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vqvae_fast import functional
from vqvae_fast.acceleration.choice import recipe_for
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.acceleration.replaced import class_with, originals_of, restore_module
from vqvae_fast.formulas import flat_indices


class _Counts(NamedTuple):
    """What :class:`Judged` counts, of one search."""

    vectors: int
    differ: int
    ours_nearer: int
    theirs_nearer: int
    excess: float


class Judged(NamedTuple):
    """How the codes that a quantizer of a model chose compare with ours, for the same vectors.

    Attributes:
        name: the module's name in the model.
        kind: the name of its class.
        vectors: how many it was given.
        differ: how many of them got another code from it.
        ours_nearer: for how many of these our code is the nearer one in float64.
        theirs_nearer: for how many of these the model's own is.
        excess: the largest share by which the distance of the model's own code exceeds ours. A
            vector that has no distances, because of a NaN, counts in ``differ`` only.
    """

    name: str
    kind: str
    vectors: int
    differ: int
    ours_nearer: int
    theirs_nearer: int
    excess: float


class Comparison(list[Judged]):
    """What :func:`compare` has found, a :class:`Judged` for each quantizer. ``print`` shows it."""

    def __str__(self) -> str:
        """A table; equally near codes are those that neither column has."""
        heads = ("quantizer", "vectors", "differ", "ours nearer", "theirs nearer", "excess")
        rows = [
            (f"{j.name or '(the model itself)'} ({j.kind})", *map(str, j[2:6]), f"{j.excess:.1e}")
            for j in self
        ]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        return "\n".join(
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for number, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in (heads, *rows)
        )


def compare(model: nn.Module, inputs: Any, *, method: str = "forward") -> Comparison:
    """Compare the codes that a model's own quantizers choose with the nearest ones.

    The model runs once with its own searches, accelerated or not, in eval and without gradients.
    What each search was given is searched again by this package; where the codes differ, their
    distances in float64 say which is nearer.

    Args:
        model: a module, with quantizers in it that have a recipe.
        inputs: what the model is called with: a tensor, a tuple of arguments or a mapping of
            keyword arguments.
        method: the method that is called, as "encode".

    Returns:
        A :class:`Comparison`: a list with one entry for each quantizer that has searched. One with
        methods of its own, which :func:`accelerate` leaves alone, has none.

    Raises:
        ValueError: no quantizer with a recipe has searched.
    """
    searches: dict[str, list[_Counts]] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_in_eval(model))
        kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        for name, module in model.named_modules():
            recipe = recipe_for(module)
            if recipe is not None:
                stack.enter_context(_observed(module, recipe, searches.setdefault(name, [])))
        if isinstance(inputs, Mapping):
            getattr(model, method)(**inputs)
        else:
            getattr(model, method)(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    judged = [_judged(name, kinds[name], seen) for name, seen in searches.items() if seen]
    if not judged:
        raise ValueError(
            f"no quantizer with a recipe has searched in {type(model).__name__}.{method}"
        )
    return Comparison(judged)


@contextmanager
def _observed(module: nn.Module, recipe: Recipe, searches: list[_Counts]) -> Iterator[None]:
    """Gives a module its own methods back for a while, and judges the searches of one of them."""
    methods = originals_of(recipe, type(module))
    if recipe.observed is not None:
        name, search_of = recipe.observed
        original = methods.get(name) or getattr(type(module), name)

        def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            search = search_of(self, result, *args, **kwargs)
            searches.extend([] if search is None else [_counts(search)])
            return result

        methods[name] = method
    module.__class__ = class_with(methods, type(module))
    try:
        yield
    finally:
        restore_module(module)


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _judged(name: str, kind: str, searches: list[_Counts]) -> Judged:
    return Judged(
        name,
        kind,
        vectors=sum(counts.vectors for counts in searches),
        differ=sum(counts.differ for counts in searches),
        ours_nearer=sum(counts.ours_nearer for counts in searches),
        theirs_nearer=sum(counts.theirs_nearer for counts in searches),
        excess=max(counts.excess for counts in searches),
    )


def _counts(search: Search) -> _Counts:
    z, codebook, theirs = search
    dtype = torch.promote_types(z.dtype, codebook.dtype)
    ours = functional.nearest_code(z.to(dtype), codebook.to(dtype)).indices
    differ = ours != theirs
    rows, books = z[differ].double(), codebook.flatten(0, -2)
    mine, other = (
        (rows - books[flat_indices(found, codebook)[differ]].double()).square().sum(dim=-1)
        for found in (ours, theirs)
    )
    excess = (other - mine) / mine.clamp(min=torch.finfo(torch.float64).tiny)
    excess = excess[~excess.isnan()]
    return _Counts(
        vectors=theirs.numel(),
        differ=int(differ.sum()),
        ours_nearer=int((mine < other).sum()),
        theirs_nearer=int((other < mine).sum()),
        excess=float(excess.max().clamp(min=0)) if len(excess) else 0.0,
    )
