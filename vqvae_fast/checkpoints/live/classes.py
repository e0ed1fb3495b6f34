"""Recognises classes and functions of other libraries by their names, without an import."""

from collections.abc import Collection
from typing import Any

from torch import nn

# What a subclass may define without changing what the class does.
_HARMLESS = frozenset(
    (
        *("__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__dict__"),
        *("__weakref__", "__firstlineno__", "__static_attributes__", "__annotate_func__"),
        *("__repr__", "extra_repr", "_get_name", "__parameters__", "__orig_bases__"),
    )
)


def library_class(module: object, package: str, names: Collection[str]) -> type | None:
    """The first class of an object, or of what it inherits from, with one of these names.

    Args:
        module: any object.
        package: the top-level package that the class was defined in.
        names: of classes in that package.
    """
    for kind in type(module).__mro__:
        if kind.__qualname__ in names and is_of(kind, package):
            return kind
    return None


def is_of(thing: Any, package: str) -> bool:
    """Whether a class or a function was defined in this top-level package."""
    where = getattr(thing, "__module__", None)
    return isinstance(where, str) and where.partition(".")[0] == package


def overridden(module: nn.Module, kind: type) -> list[str]:
    """What a module does in another way than a class that it inherits from.

    Attributes that its class adds, and a constructor, change nothing that the class does.

    Returns:
        Names of methods, sorted: those that its class or a mixin defines anew, and those that were
        set on the module itself.
    """
    names = {name for name in vars(module) if callable(getattr(kind, name, None))}
    for other in set(type(module).__mro__) - set(kind.__mro__):
        names |= {name for name in vars(other) if hasattr(kind, name)}
    return sorted(names - _HARMLESS)
