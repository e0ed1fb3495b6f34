"""Keeps torch.compile out of replacements whose originals it cannot trace as a whole either."""

import functools
from typing import Any

import torch
from torch._compile import _disable_dynamo

from vqvae_fast.acceleration.recipe import Replacement


def untraced(replacement: Replacement) -> Replacement:
    """Decorate a replacement that torch.compile is to run as it is, between two graphs.

    ``torch.compiler.disable`` would import the compiler at once.
    """
    not_traced = _disable_dynamo(replacement)

    @functools.wraps(replacement)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = not_traced if torch.compiler.is_compiling() else replacement
        return call(*args, **kwargs)

    return run
