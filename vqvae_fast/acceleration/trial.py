"""Tries a replacement on a module that was recognised by its shape: do both give the same?"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.replaced import methods_of, replace_in_module

# Float32 sums of some thousand elements differ by less, relative to the largest element.
_ALLOWED = 1e-4


def reason_against(recipe: Recipe, module: nn.Module) -> str | None:
    """Return why a module cannot be what the recipe takes it for; None if it can.

    A module that is known by its class is not tried. Nothing of the module changes, and torch's
    generators go on as if nothing had been drawn.
    """
    if recipe.example is None:
        return None
    for training in (False, True):
        mode = "training" if training else "eval"
        try:
            with _seeded(module):
                arguments = recipe.example(module)
            original, replaced = _copy(module), _copy(module)
            replace_in_module(replaced, methods_of(recipe, type(module)))
            with _seeded(module):
                expected = _outcome(original.train(training), arguments)
            with _seeded(module):
                found = _outcome(replaced.train(training), arguments)
            same = _are_close(found, expected)
        except Exception as problem:  # whatever an unknown class raises
            return f"a trial in {mode} failed: {type(problem).__name__}: {problem}"
        if not same:
            return f"its class has a known shape, but in {mode} it computes something else"
    return None


@contextmanager
def _seeded(module: nn.Module) -> Iterator[None]:
    """Seeds the generators of the CPU and of a module's GPUs for a while, and no others."""
    tensors = (*module.parameters(), *module.buffers())
    gpus = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would seed all GPUs.
        torch.default_generator.manual_seed(0)
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(0)
        yield


def _copy(module: nn.Module) -> nn.Module:
    """A copy; also of a module with tensors in a graph, as those of weight_norm are."""
    parts = [part for each in module.modules() for part in (vars(each), each._buffers)]
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in parts
        for value in part.values()
        if isinstance(value, Tensor) and value.requires_grad
    }
    return copy.deepcopy(module, memo)


def _outcome(module: nn.Module, arguments: tuple[Any, ...]) -> list[Any]:
    """What forward gives, the gradients in training, and the state after it."""
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
        # Strides, which may differ, would change the order of the numbers of rand_like.
        weights = [torch.rand(part.shape).to(part) for part in learning]
        torch.autograd.backward(learning, weights)
    inputs = [argument.grad for argument in arguments if isinstance(argument, Tensor)]
    weights_of_module = [parameter.grad for parameter in module.parameters()]
    learns = [isinstance(part, Tensor) and part.requires_grad for part in given]
    return [*given, *learns, *inputs, *weights_of_module, *module.state_dict().values()]


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
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=_ALLOWED * largest, equal_nan=True)
