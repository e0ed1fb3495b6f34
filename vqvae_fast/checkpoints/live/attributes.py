"""Reads attributes of live modules, and says which setting cannot be read."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

_MISSING = object()


def attribute(module: object, name: str) -> Any:
    """An attribute of a module.

    Raises:
        ValueError: it is not there, as in another version of the library.
    """
    value = getattr(module, name, _MISSING)
    if value is _MISSING:
        raise unreadable(name, f"{type(module).__name__} has no such attribute")
    return value


def attributes(module: object, names: Iterable[str]) -> dict[str, Any]:
    """Several of them, by name."""
    return {name: attribute(module, name) for name in names}


def unreadable(name: str, why: str) -> ValueError:
    """The error for a setting that ours cannot take over."""
    return ValueError(f"{name} of the live module cannot be taken over: {why}")


def require_equal(name: str, values: Sequence[Any], where: str) -> None:
    """Raise ValueError unless a setting has one value in all stages or groups.

    Args:
        name: of the setting.
        values: one for each.
        where: what has the values, in the plural.
    """
    first = values[0]
    for value in values[1:]:
        if value is not first and value != first:
            raise unreadable(name, f"it must be the same in all {where}, got {list(values)!r}")


def common(arguments: Sequence[dict[str, Any]], where: str) -> dict[str, Any]:
    """Arguments that all stages or groups share.

    Raises:
        ValueError: one differs.
    """
    for name in arguments[0]:
        require_equal(name, [each.get(name, _MISSING) for each in arguments], where)
    return dict(arguments[0])


def without_counterpart(module: Any, name: str, option: str | None, given: Collection[str]) -> None:
    """Raise ValueError for what a module does in training and ours does not.

    Args:
        module: the live one; in eval the setting has no effect.
        name: of the setting.
        option: an argument of ours by which the caller may say what is to happen instead.
        given: the options that the caller has given.
    """
    if module.training and option not in given:
        instead = "" if option is None else f"give the option {option}, or "
        raise unreadable(
            name, f"ours does not do in training what it says; {instead}call eval() first"
        )
