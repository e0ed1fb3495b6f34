"""Compares an accelerated module with its original: codes in float64, all else within rounding."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast import accelerate


def accelerated(module: nn.Module, *, nothing_left: bool = True) -> nn.Module:
    """A copy whose quantizers are accelerated."""
    ours = copied(module)
    done = accelerate(ours, quiet=True)
    assert done.accelerated
    assert not (nothing_left and done.left), str(done)
    return ours


def copied(module: nn.Module) -> nn.Module:
    """A copy, also of a module with weight_norm, whose weights lie in a graph."""
    tensors = [value for part in module.modules() for value in vars(part).values()]
    memo = {
        id(value): value.detach().clone()
        for value in tensors
        if isinstance(value, Tensor) and value.requires_grad
    }
    return copy.deepcopy(module, memo)


def leaves(result: Any) -> Iterator[Any]:
    """The parts of a nested result, with the types of what holds them."""
    if isinstance(result, Mapping):
        yield type(result)
        for key, value in result.items():
            yield key
            yield from leaves(value)
    elif isinstance(result, Sequence) and not isinstance(result, str):
        yield type(result)
        for value in result:
            yield from leaves(value)
    else:
        yield result


def outcome(module: nn.Module, *arguments: Any, method: str = "forward") -> list[Any]:
    """What a method gives; where gradients are on, those of inputs and parameters; the state."""
    torch.manual_seed(3)
    random.seed(3)
    arguments = tuple(
        part.clone().requires_grad_(torch.is_grad_enabled() and part.is_floating_point())
        if isinstance(part, Tensor)
        else part
        for part in arguments
    )
    module.zero_grad()
    call = module if method == "forward" else getattr(module, method)
    results = list(leaves(call(*arguments)))
    learning = [part for part in results if isinstance(part, Tensor) and part.requires_grad]
    if learning:
        torch.autograd.backward(learning, [torch.rand(part.shape).to(part) for part in learning])
    gradients = [part.grad for part in arguments if isinstance(part, Tensor)]
    gradients += [parameter.grad for parameter in module.parameters()]
    learns = [part.requires_grad for part in results if isinstance(part, Tensor)]
    return [*results, *learns, *gradients, *module.state_dict().values()]


def assert_same(found: list[Any], expected: list[Any], tolerance: float = 2e-5) -> None:
    """Types, shapes, dtypes and codes are equal, numbers are within rounding."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        if not isinstance(theirs, Tensor):
            assert ours == theirs or ours != ours
            continue
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.is_sparse or _strides(ours) == _strides(theirs)
        allowed = 0.0
        if theirs.is_floating_point() and theirs.numel():
            allowed = tolerance * float(theirs.detach().nan_to_num().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=allowed, equal_nan=True)


def _strides(tensor: Tensor) -> list[int]:
    """Those that say where elements lie."""
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride for stride, size in sizes if size > 1 and tensor.numel()]


def assert_nearest(codes: Tensor, z: Tensor, codebook: Tensor) -> None:
    """Each code's distance is the smallest in float64, up to what the contract allows."""
    assert count_of_misses(codes, z, codebook) == 0


def count_of_misses(codes: Tensor, z: Tensor, codebook: Tensor) -> int:
    """Count the codes whose distance in float64 exceeds the smallest by more than is allowed."""
    distances = torch.cdist(
        z.double().reshape(-1, z.shape[-1]),
        codebook.double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).square()
    chosen = distances.gather(1, codes.reshape(-1, 1))[:, 0]
    smallest = distances.min(dim=1).values
    return int((~(chosen <= smallest * (1 + 1e-6))).sum())


def assert_undone(module: nn.Module, *arguments: Any) -> None:
    """undo() gives back what the module computed, bit for bit, and its class."""
    module = copied(module)
    classes = [type(part) for part in module.modules()]
    keys = list(module.state_dict())
    before = outcome(copied(module), *arguments)
    done = accelerate(module, quiet=True)
    assert list(module.state_dict()) == keys
    assert classes != [type(part) for part in module.modules()]
    done.undo()
    assert classes == [type(part) for part in module.modules()]
    after = outcome(module, *arguments)
    for one, other in zip(after, before, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other or one != one


def assert_eval_is_as_before(module: nn.Module, x: Tensor) -> None:
    """In eval the accelerated module gives what the original gives, also from packed codes."""
    module.eval()
    ours = accelerated(module)
    for _ in range(2):  # the second search finds the codes packed
        assert_same(outcome(ours, x), outcome(module, x))
