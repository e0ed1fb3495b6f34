"""A module of ours beside vector-quantize-pytorch's: the same state and seed, several steps."""

import copy

import pytest
import torch

peer = pytest.importorskip("vector_quantize_pytorch")


def name(value):
    """Id of options."""
    if isinstance(value, dict):
        return "-".join(f"{key}={_short(item)}" for key, item in value.items()) or "defaults"
    return None


def _short(item):
    return item if isinstance(item, (bool, int, float, tuple)) else type(item).__name__


def flat(values):
    """Tensors of nested tuples, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]


def step(module, optimizer, x, call):
    """Forward, backward and the optimizer; what came out, and the gradients."""
    x = x.clone().requires_grad_()
    out = module(x, **call)
    weight = torch.linspace(0, 1, out[0].numel()).view(out[0].shape)
    loss = out[1] if "indices" in call else out[2]
    total = 0.1 * (out[0] * weight).sum() + 2 * loss.sum()
    if total.requires_grad:
        total.backward()
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return flat(out), gradients


def pair(ours, options):
    """The peer's module of that name and ours, in the same state."""
    theirs = getattr(peer, ours.__name__)(**copy.deepcopy(options))
    module = ours(**copy.deepcopy(options))
    module.load_state_dict(theirs.state_dict())
    return theirs, module


def check(ours, options, shape, call, training=True, steps=3):
    """Both modules from one state, with the same draws."""
    compare(pair(ours, options), shape, call, training, steps)


def compare(modules, shape, call, training=True, steps=3):
    """The peer's module and ours, which are in one state, with the same draws."""
    sides = []
    for module in modules:
        parameters = list(module.parameters())
        optimizer = torch.optim.SGD(parameters, 0.05) if parameters else None
        sides.append((module.train(training), optimizer))
    for number in range(steps):
        x = torch.randn(shape)
        results = []
        for module, optimizer in sides:
            torch.manual_seed(number)
            results.append(step(module, optimizer, x, call))
        (expected, their_gradients), (got, our_gradients) = results
        for right, value in zip(expected, got, strict=True):
            assert value.shape == right.shape
            assert value.dtype == right.dtype
            torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
        for right, value in zip(their_gradients, our_gradients, strict=True):
            if right is None:
                assert value is None or not value.any()
            else:
                torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
        theirs, state = (module.state_dict() for module in modules)
        for key, right in theirs.items():
            torch.testing.assert_close(state[key], right, rtol=1e-4, atol=1e-5)
        # Affine statistics of the batch are there only after the first one.
        assert {*state} - {*theirs} <= {"_codebook.batch_mean", "_codebook.batch_variance"}
