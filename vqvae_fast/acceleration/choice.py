"""Chooses the recipe that serves a module, or says why none does."""

from torch import nn

from vqvae_fast.acceleration.known import KNOWN
from vqvae_fast.acceleration.no_search import reason_without_search
from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.replaced import is_accelerated
from vqvae_fast.acceleration.trial import reason_against


def chosen_for(module: nn.Module) -> tuple[Recipe | None, str | None]:
    """Return the recipe that serves a module, or the reason why it must be left alone.

    Returns:
        ``(recipe, None)``, ``(None, reason)``, or ``(None, None)`` for a module that nothing is
        known of.
    """
    reasons = []
    for recipe in _that_know(module):
        reason = _reason_to_leave(recipe, module)
        if reason is None:
            return recipe, None
        if recipe.example is None:  # a class that is known by its name has one recipe
            return None, reason
        reasons.append(reason)
    return None, reasons[0] if reasons else reason_without_search(type(module))


def recipe_for(module: nn.Module) -> Recipe | None:
    """Return the recipe that knows a module, one that must be left alone, too.

    A module that is known by its shape only has one if it passes the trial.
    """
    for recipe in _that_know(module):
        if is_accelerated(recipe, type(module)) or reason_against(recipe, module) is None:
            return recipe
    return None


def _that_know(module: nn.Module) -> list[Recipe]:
    """The recipes that know a module; if one has accelerated it, that one alone."""
    known = [recipe for recipe in KNOWN if recipe.class_of(module) is not None]
    return [recipe for recipe in known if is_accelerated(recipe, type(module))] or known


def _reason_to_leave(recipe: Recipe, module: nn.Module) -> str | None:
    if is_accelerated(recipe, type(module)):
        return None
    return recipe.reason_to_leave(module) or reason_against(recipe, module)
