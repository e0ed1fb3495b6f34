"""Marks functions for torch.compile without importing it."""

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def called_while_tracing(function: _Function) -> _Function:
    """Decorate a function that torch.compile calls while it makes a graph, and leaves out of it.

    ``torch.compiler.assume_constant_result`` sets the same attribute, but it imports the whole
    compiler first. That would make up a third of the time of ``import vqvae_fast``.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
