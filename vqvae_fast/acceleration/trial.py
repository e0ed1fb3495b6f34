"""Tries a replacement on a module that was recognised by its shape: do both give the same?"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.replaced import accelerated_class

# Float32 sums of some thousand elements differ by less, relative to the largest element.
_ALLOWED = 1e-4


def reason_against(recipe: Recipe, module: nn.Module) -> str | None:
    """Return why a module cannot be what the recipe takes it for; None if it can.

    A module that is known by its class is not tried. Nothing of the module changes, and torch's
    generator goes on as if nothing had been drawn.
    """
    if recipe.example is None:
        return None
    for training in (False, True):
        mode = "training" if training else "eval"
        with torch.random.fork_rng(devices=[]):
            arguments = recipe.example(module)
            original, replaced = copy.deepcopy(module), copy.deepcopy(module)
            replaced.__class__ = accelerated_class(recipe, type(module))
            try:
                expected = _outcome(original.train(training), arguments)
                found = _outcome(replaced.train(training), arguments)
            except Exception as problem:  # whatever an unknown class raises
                return f"a trial in {mode} failed: {type(problem).__name__}: {problem}"
        if not _are_close(found, expected):
            return f"its class has a known shape, but in {mode} it computes something else"
    return None


def _outcome(module: nn.Module, arguments: tuple[Any, ...]) -> list[Any]:
    """What forward gives, the gradients in training, and the state after it."""
    torch.manual_seed(0)
    arguments = tuple(
        argument.detach().clone().requires_grad_(module.training and argument.is_floating_point())
        if isinstance(argument, Tensor)
        else argument
        for argument in arguments
    )
    with torch.set_grad_enabled(module.training):
        given = list(_leaves(module(*arguments)))
    learning = [part for part in given if isinstance(part, Tensor) and part.requires_grad]
    if learning:
        # Weights of their own, so that no two parts of the result can stand for each other.
        weights = [torch.rand_like(part) for part in learning]
        torch.autograd.backward(learning, weights)
    inputs = [argument.grad for argument in arguments if isinstance(argument, Tensor)]
    weights_of_module = [parameter.grad for parameter in module.parameters()]
    return [*given, *inputs, *weights_of_module, *module.state_dict().values()]


def _leaves(result: Any) -> Iterator[Any]:
    """The parts of nested results, in their order."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            yield key
            yield from _leaves(value)
    elif isinstance(result, Sequence) and not isinstance(result, str):
        yield type(result)
        for value in result:
            yield from _leaves(value)
    else:
        yield result


def _are_close(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(map(_is_close, found, expected))


def _is_close(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return type(found) is type(expected) and (
            isinstance(expected, Tensor) or bool(found == expected)
        )
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=_ALLOWED * largest, equal_nan=True)
