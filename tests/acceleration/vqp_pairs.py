"""A quantizer of vector-quantize-pytorch beside an accelerated copy of it, step by step."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqvae_fast import accelerate

peer = pytest.importorskip("vector_quantize_pytorch")

DIM, SIZE = 8, 24


def make(kind: str, **options: Any) -> nn.Module:
    """A quantizer of a class of the library, with small sizes where they are not given."""
    sizes = {"dim": DIM, "codebook_size": SIZE}
    if kind in ("ResidualVQ", "GroupedResidualVQ", "ResidualSimVQ"):
        sizes["num_quantizers"] = 3
    if kind == "RandomProjectionQuantizer":
        sizes["codebook_dim"] = 4
    return getattr(peer, kind)(**sizes | copy.deepcopy(options))


def accelerated(module: nn.Module) -> nn.Module:
    """A copy with replaced methods."""
    ours = copy.deepcopy(module)
    done = accelerate(ours, quiet=True)
    assert done.accelerated
    assert not done.left
    return ours


def leaves(result: Any) -> list[Any]:
    """The tensors of a nested result, and the types that hold them."""
    if isinstance(result, (tuple, list)):
        return [type(result), len(result), *(leaf for part in result for leaf in leaves(part))]
    return [result]


def outcome(module: nn.Module, x: Tensor, **call: Any) -> list[Any]:
    """What a call gives, then all gradients and the state; random numbers start anew."""
    module.zero_grad()
    torch.manual_seed(5)
    x = x.clone().requires_grad_(module.training and torch.is_grad_enabled())
    given = leaves(module(x, **copy.deepcopy(call)))
    floats = [part for part in given if isinstance(part, Tensor) and part.is_floating_point()]
    weighted = [
        (part * torch.linspace(0, 1, max(part.numel(), 1)).view(part.shape)).sum()
        for part in floats
    ]
    total = sum(weighted, torch.zeros(()))
    if total.requires_grad:
        total.backward()
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    return [*given, *gradients, *(value.clone() for value in module.state_dict().values())]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Equal but for float32 rounding."""
    assert len(found) == len(expected)
    for got, right in zip(found, expected, strict=True):
        if isinstance(right, Tensor) and isinstance(got, Tensor):
            scale = max(1.0, float(right.detach().double().abs().max())) if right.numel() else 1.0
            tolerance = 2e-2 if right.dtype in (torch.bfloat16, torch.float16) else 2e-5 * scale
            torch.testing.assert_close(got, right, rtol=2e-4, atol=tolerance, equal_nan=True)
        else:
            assert got is right or got == right


def assert_same_steps(
    theirs: nn.Module, ours: nn.Module, inputs: list[Tensor], training: bool = True, **call: Any
) -> None:
    """Both modules take a step with each input, with an optimizer in training."""
    optimizers = [
        torch.optim.SGD(list(module.parameters()), lr=0.05)
        for module in (theirs, ours)
        if any(True for _ in module.parameters())
    ]
    for x in inputs:
        with torch.set_grad_enabled(training):
            expected, found = (
                outcome(module.train(training), x, **call) for module in (theirs, ours)
            )
        assert_same(found, expected)
        if training:
            for optimizer in optimizers:
                optimizer.step()
