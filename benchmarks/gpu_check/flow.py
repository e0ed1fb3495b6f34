"""Follows the control flow in a listing, for the checks of hazards."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def reachable(
    starts: Iterable[State], successors: Callable[[State], Iterable[State]]
) -> set[State]:
    """Return the nodes that can be reached in one step or more from any start."""
    found: set[State] = set()
    waiting = list(starts)
    while waiting:
        for state in successors(waiting.pop()):
            if state not in found:
                found.add(state)
                waiting.append(state)
    return found
