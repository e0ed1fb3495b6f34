"""How ``vqvae-fast train`` trains each kind of quantizer: one file for each name of --quantizer.

Every file in this folder is named as the option's value and defines ``RECIPE``. Files are found by
their presence: CONTRIBUTING.md shows how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, NamedTuple

from vqvae_fast.errors import UserError
from vqvae_fast.nn.vqvae.quantizer import Quantizer

_NONE: Mapping[str, Any] = MappingProxyType({})


class Sizes(NamedTuple):
    """The sizes of a run, by which a recipe decides.

    Attributes:
        codebook_size: number of codes K.
        vectors_per_step: vectors N that a training step quantizes.
        dim: length of a code D if the user has given one; None leaves it to the recipe.
    """

    codebook_size: int
    vectors_per_step: int
    dim: int | None


class Plan(NamedTuple):
    """What a recipe decides for a run.

    Attributes:
        quantizer: arguments of the quantizer's class, beside n_e, e_dim and beta.
        model: arguments of :class:`vqvae_fast.VQVAE`: legacy, shared_residual, relu_skip, l2_norm.
        dim: length of a code D, unless the user has given one.
        cooling: share of the run, at its end, in which the learning rate falls linearly to 0.
    """

    quantizer: Mapping[str, Any] = _NONE
    model: Mapping[str, Any] = _NONE
    dim: int = 64
    cooling: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one kind of quantizer is trained.

    Attributes:
        help: what ``vqvae-fast train --help`` says of it: a few words, without a full stop.
        quantizer: the class of the quantizer. Checkpoints record its name.
        plan: decides the rest, from the sizes of the run.
    """

    help: str
    quantizer: type[Quantizer]
    plan: Callable[[Sizes], Plan]


def recipe_names() -> list[str]:
    """The names of all recipes in alphabetical order; no recipe is imported."""
    return sorted(module.name for module in iter_modules(__path__))


def load_recipe(name: str) -> Recipe:
    """The recipe of this name, one of :func:`recipe_names`.

    Raises:
        UserError: its file does not define one.
    """
    module = import_module(f"{__name__}.{name}")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{module.__file__} must define RECIPE, a Recipe, got {recipe!r}")
    return recipe


def quantizer_classes() -> dict[str, type[Quantizer]]:
    """The classes of all recipes by name; files may name these and no others.

    Raises:
        UserError: two recipes have different classes of one name.
    """
    classes: dict[str, type[Quantizer]] = {}
    for recipe in map(load_recipe, recipe_names()):
        name = recipe.quantizer.__name__
        if classes.setdefault(name, recipe.quantizer) is not recipe.quantizer:
            places = f"{classes[name].__module__} and {recipe.quantizer.__module__}"
            raise UserError(f"quantizers must have different names, got {name} in {places}")
    return classes
