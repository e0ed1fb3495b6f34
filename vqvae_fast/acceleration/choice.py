"""Chooses the recipe that serves a module, or says why none does."""

from collections.abc import Iterable, Iterator

from torch import nn

from vqvae_fast.acceleration.known import KNOWN
from vqvae_fast.acceleration.no_search import reason_without_search
from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.replaced import is_accelerated
from vqvae_fast.acceleration.trial import reason_against


def recipes(compose_projections: bool) -> Iterator[Recipe]:
    """Give the recipes that may serve: those that compose projections only if that is wanted."""
    return (recipe for recipe in KNOWN if compose_projections or not recipe.composes_projections)


def chosen_for(module: nn.Module, compose_projections: bool) -> tuple[Recipe | None, str | None]:
    """Return the recipe that serves a module, or the reason why it must be left alone.

    Returns:
        ``(recipe, None)``, ``(None, reason)``, or ``(None, None)`` for a module that nothing is
        known of.
    """
    done = _that_has_accelerated(module)
    if done is not None:
        return done, None
    reasons = []
    for recipe in _that_know(module, recipes(compose_projections)):
        reason = recipe.reason_to_leave(module) or reason_against(recipe, module)
        if reason is None:
            return recipe, None
        if recipe.example is None:  # a class that is known by its name has one recipe
            return None, reason
        reasons.append(reason)
    return None, reasons[0] if reasons else reason_without_search(type(module))


def recipe_for(module: nn.Module) -> Recipe | None:
    """Return the recipe that knows a module, one that must be left alone, too.

    A module with methods of its own has none, because they may search otherwise. A module that is
    known by its shape only has one if it passes the trial.
    """
    done = _that_has_accelerated(module)
    if done is not None:
        return done
    return next(
        (
            recipe
            for recipe in _that_know(module, KNOWN)
            if not recipe.own_methods(module) and reason_against(recipe, module) is None
        ),
        None,
    )


def _that_know(module: nn.Module, among: Iterable[Recipe]) -> Iterator[Recipe]:
    return (recipe for recipe in among if recipe.class_of(module) is not None)


def _that_has_accelerated(module: nn.Module) -> Recipe | None:
    return next((recipe for recipe in KNOWN if is_accelerated(recipe, type(module))), None)
