"""Tries a replacement on a module that was recognised by its shape: do both give the same?"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.replaced import accelerated_class
from vqvae_fast.autocast import without_autocast

# Float32 sums of some thousand elements differ by less, relative to the largest element.
_ALLOWED = 1e-4


def reason_against(recipe: Recipe, module: nn.Module) -> str | None:
    """Return why a module cannot be what the recipe takes it for; None if it can.

    A module that is known by its class is not tried. Nothing of the module changes, and torch's
    generators go on as if nothing had been drawn.
    """
    if recipe.example is None:
        return None
    # Mathematics is tried, not rounding: in 16 bits the original finds other codes. In float64 it
    # hardly ever does, but not every class runs in it.
    with torch.inference_mode(False), _without_autocast(module):
        reason = _reason_in(torch.float64, recipe, module)
        return reason if reason is None else _reason_in(torch.float32, recipe, module)


def _reason_in(dtype: torch.dtype, recipe: Recipe, module: nn.Module) -> str | None:
    """The reason against a module with its floating-point numbers in this dtype."""
    for training in (False, True):
        mode = "training" if training else "eval"
        try:
            original, replaced = (_copy(module).to(dtype) for _ in range(2))
            replaced.__class__ = accelerated_class(recipe, type(module))
            with _seeded(module):
                assert recipe.example is not None
                arguments = recipe.example(original)
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
def _without_autocast(module: nn.Module) -> Iterator[None]:
    """Switches autocast off for the devices of a module."""
    with ExitStack() as stack:
        for device in {tensor.device.type for tensor in _tensors_of(module)}:
            stack.enter_context(without_autocast(device))
        yield


@contextmanager
def _seeded(module: nn.Module) -> Iterator[None]:
    """Seeds the generators of the CPU and of a module's GPUs for a while, and no others."""
    gpus = sorted({part.device.index for part in _tensors_of(module) if part.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would seed all GPUs.
        torch.default_generator.manual_seed(0)
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(0)
        yield


def _tensors_of(module: nn.Module) -> tuple[Tensor, ...]:
    return (*module.parameters(), *module.buffers())


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
