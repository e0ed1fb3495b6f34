"""Finds the quantizers in a model that exists, and gives them exact, fast searches in place."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from vqvae_fast.acceleration.choice import chosen_for, recipes
from vqvae_fast.acceleration.kept import forget
from vqvae_fast.acceleration.known import KNOWN
from vqvae_fast.acceleration.no_search import is_like_a_quantizer
from vqvae_fast.acceleration.recipe import Recipe, name_of
from vqvae_fast.acceleration.replaced import (
    accelerated_class,
    is_accelerated,
    replace_in_class,
    restore_class,
    restore_module,
)


class Place(NamedTuple):
    """A quantizer in a model, or a class of quantizers.

    Attributes:
        name: the module's name in the model, "" for the model itself; the class's name.
        kind: the name of its class.
        about: its sizes; or why it was left.
    """

    name: str
    kind: str
    about: str

    def __str__(self) -> str:
        """One line of the report."""
        about = f": {self.about}" if self.about else ""
        return f"  {self.name or '(the model itself)'} ({self.kind}){about}"


@dataclass
class Acceleration:
    """What :func:`vqvae_fast.accelerate` has done. ``print`` shows it.

    Attributes:
        accelerated: the quantizers that search exactly and fast now, those in others, too.
        left: those that do not, and why.
    """

    accelerated: list[Place] = field(default_factory=list)
    left: list[Place] = field(default_factory=list)
    _modules: list[nn.Module] = field(default_factory=list, repr=False)
    _classes: list[type[nn.Module]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Give the quantizers, or the classes, their own methods back, and free what is kept.

        This undoes what was asked for by the call that has returned this object, whether an earlier
        call had done it already or not. A module whose class was accelerated keeps the methods of
        its class until the ``undo()`` of the class; that in turn leaves modules accelerated that
        were accelerated by themselves before.

        Raises:
            RuntimeError: something has given a quantizer another class since. The others are as
                they were before.
        """
        problems = []
        for module in self._modules:
            forget(module)
            try:
                restore_module(module)
            except RuntimeError as problem:
                problems.append(str(problem))
        for cls in self._classes:
            restore_class(cls)
        if problems:
            raise RuntimeError("; ".join(problems))

    def __str__(self) -> str:
        """The report: what, where, how many, what was left and why."""
        outermost = self._outermost()
        lines = [f"vqvae_fast accelerates {_count(len(outermost), 'quantizer')}"]
        lines += map(str, outermost)
        if self.left:
            lines.append(f"and leaves {_count(len(self.left), 'module')} alone")
            lines += map(str, self.left)
        return "\n".join(lines)

    def _outermost(self) -> list[Place]:
        """The accelerated ones, without those that lie in another one; it names their number."""
        outer: list[Place] = []
        inner: list[int] = []
        for place in self.accelerated:
            if outer and _lies_in(place.name, outer[-1].name):
                inner[-1] += 1
            else:
                outer.append(place)
                inner.append(0)
        return [
            place._replace(about=f"{place.about}, with {_count(number, 'quantizer')} in it")
            if number
            else place
            for place, number in zip(outer, inner, strict=True)
        ]


def accelerate(
    model: nn.Module | type[nn.Module] | str,
    *,
    compose_projections: bool = False,
    quiet: bool = False,
) -> Acceleration:
    """Give the quantizers of a model that exists exact, fast searches, in place.

    Every module that has a recipe (:mod:`vqvae_fast.acceleration.known`; :func:`register` adds
    others) gets replacements of the methods that search. Its signatures, results, gradients, moving
    averages, state_dict, hooks, dtype, device and mode stay those of the model; so do files that
    are saved, pickles, too. Codes are the nearest ones in float64, where the model's own search may
    round to another. In eval the codebooks are kept packed, as by :func:`vqvae_fast.freeze`: a
    change that torch counts packs them anew; after writes through ``.data`` or NumPy in eval, call
    this function again.

    Args:
        model: a module, with quantizers in it or one itself. Or a class of quantizers, for a
            library that makes them inside: all its instances are accelerated, those that exist
            too. Or the name of such a class, of its module or of its library, as
            ``"transformers.models.mimi"``: all classes below it that have a recipe.
        compose_projections: where each stage of a residual quantizer projects the vectors and its
            codes (DAC), keep the products of these projections in eval, as
            ``vqvae_fast.freeze(compose_projections=True)`` does. It is several times as fast, and
            it is the exception to "nearest in float64": the vectors that are compared with the
            codes, and the sum of what the stages give, are rounded otherwise than in the model, so
            a code may differ where rounding decides (the stages behind it differ with it). It
            serves calls of float32 vectors without gradients or autocast. The report says of which
            quantizers no projections are composed. It stays so until ``undo()``.
        quiet: do not print the report.

    Returns:
        An :class:`Acceleration`: ``undo()`` gives the model its own methods back. An accelerated
        model that is accelerated again stays so, and the new result's ``undo()`` works as well.

    Raises:
        TypeError: model is nothing of this.
        ValueError: no recipe knows the class, or there is no class of the name with a recipe. A
            model without known quantizers is no error: the report says so.
    """
    if isinstance(model, nn.Module):
        done = _accelerate_modules(model, compose_projections)
    elif isinstance(model, str):
        wanted = list(recipes(compose_projections))
        done = _accelerate_classes(_classes_of_name(model, wanted), wanted)
    elif isinstance(model, type) and issubclass(model, nn.Module):
        done = _accelerate_classes([model], list(recipes(compose_projections)))
    else:
        raise TypeError(
            "model must be a torch.nn.Module, a class of modules or the name of one, "
            f"got {type(model).__name__}"
        )
    if not quiet:
        print(done)
    return done


def register(recipe: Recipe) -> None:
    """Let :func:`accelerate` know the quantizers of one more class.

    Args:
        recipe: it is asked before the recipes that are known already.
    """
    KNOWN.insert(0, recipe)


def _accelerate_modules(model: nn.Module, compose_projections: bool) -> Acceleration:
    done = Acceleration()
    unknown = []
    composing: list[str] = []
    for name, module in model.named_modules():
        cls = type(module)
        recipe, reason = chosen_for(module, compose_projections)
        if recipe is not None:
            if not is_accelerated(recipe, cls):
                module.__class__ = accelerated_class(recipe, cls)
            forget(module)
            about = recipe.sizes(module)
            composing += [name] if recipe.composes_projections else []
            if compose_projections and not any(_lies_in(name, outer) for outer in composing):
                about += "; no projections are composed"
            done.accelerated.append(Place(name, cls.__name__, about))
            done._modules.append(module)
        elif reason is not None and not any(_lies_in(name, place.name) for place in done.left):
            done.left.append(Place(name, cls.__name__, reason))
        elif is_like_a_quantizer(cls):
            unknown.append(Place(name, cls.__name__, "there is no recipe for this class"))
    # A module around known ones, or inside one, needs no recipe of its own.
    known = [place.name for place in (*done.accelerated, *done.left)]
    done.left += [
        place
        for place in unknown
        if not any(_lies_in(place.name, name) or _lies_in(name, place.name) for name in known)
    ]
    return done


def _lies_in(inner: str, outer: str) -> bool:
    """Whether the first of two names of modules is that of the second, or of a part of it."""
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _accelerate_classes(classes: list[type[nn.Module]], wanted: Sequence[Recipe]) -> Acceleration:
    done = Acceleration()
    for cls in classes:
        recipe = next((recipe for recipe in wanted if recipe.known == name_of(cls)), None)
        if recipe is None:
            raise ValueError(
                f"there is no recipe for the class {name_of(cls)}; one that is known by the shape "
                "of its modules can only be accelerated in a model, and one whose projections are "
                "composed only with compose_projections=True"
            )
        if not is_accelerated(recipe, cls):
            replace_in_class(recipe, cls)
        done.accelerated.append(Place(name_of(cls), cls.__name__, "all instances"))
        done._classes.append(cls)
    return done


def _classes_of_name(name: str, wanted: Sequence[Recipe]) -> list[type[nn.Module]]:
    """The classes with a wanted recipe that have this name, or stand below it."""
    known = [recipe.known for recipe in wanted if isinstance(recipe.known, str)]
    below = [full for full in known if full == name or full.startswith(f"{name}.")]
    classes = []
    for full in below:
        module, _, cls = full.rpartition(".")
        # Older versions of a library lack some of its classes.
        if _is_installed(module):
            found = getattr(importlib.import_module(module), cls, None)
            classes += [] if found is None else [found]
    if not classes:
        raise ValueError(
            f"no class with a recipe is named {name!r} or stands below it"
            + (f"; recipes know {', '.join(below)}, which are not installed" if below else "")
        )
    return classes


def _is_installed(module: str) -> bool:
    """Whether there is a module of this name; its packages are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as problem:
        if module.startswith(f"{problem.name}."):
            return False
        raise  # the package is there, but something that it needs is not


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
