"""The averages of a codebook, and the batches that wait until they are averaged in."""

import copy
import io

import pytest
import torch

from vqvae_fast.nn import VectorQuantize
from vqvae_fast.nn.codebook.averages import Averages, BatchSums


def quantizer(**options):
    return VectorQuantize(**{"dim": 8, "codebook_size": 16, "decay": 0.5} | options)


def pair(**options):
    one, other = quantizer(**options), quantizer(**options)
    other.load_state_dict(one.state_dict())
    return one, other


def assert_same_state(one, other):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name].to(value), value)


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"affine_param": True}], ids=str)
def test_accumulated_batches_count_as_one(options):
    whole, parts = pair(**options)
    x = torch.randn(3, 12, 8)
    for module in (whole, parts):  # affine codes move with every batch: let both see the same
        module._codebook.observe = lambda *_: None
    whole(x)
    before = {name: value.clone() for name, value in parts.state_dict().items()}
    parts(x[:1], accum_ema_update=True)
    parts(x[1:2], accum_ema_update=True)
    assert all(torch.equal(value, before[name]) for name, value in parts.state_dict().items())
    parts(x[2:])
    assert parts._codebook.pending is None
    assert_same_state(whole, parts)


@pytest.mark.parametrize("change", [copy.deepcopy, lambda module: module.double()])
def test_what_waits_follows_the_module(change):
    """A copy has what waits for the original, and so has a module of another dtype."""
    whole, parts = pair()
    x = torch.randn(2, 12, 8)
    whole(x)
    parts(x[:1], accum_ema_update=True)
    changed = change(parts)
    changed(x[1:].to(changed.codebook.dtype))
    assert_same_state(whole, changed)


def test_a_copy_does_not_take_what_waits_for_the_original():
    whole, parts = pair()
    x = torch.randn(2, 12, 8)
    whole(x)
    parts(x[:1], accum_ema_update=True)
    copy.deepcopy(parts)(torch.randn(1, 12, 8))
    parts(x[1:])
    assert_same_state(whole, parts)


def test_what_waits_is_no_gradient_and_not_in_the_state():
    module = quantizer()
    names = list(module.state_dict())
    module(torch.randn(1, 12, 8), accum_ema_update=True)
    module.zero_grad()
    assert module._codebook.pending is not None
    assert all(buffer.grad is None for buffer in module.buffers())
    assert list(module.state_dict()) == names
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)  # loads into a module for which nothing waits
    stored.seek(0)
    other = quantizer()
    other.load_state_dict(torch.load(stored))
    assert other._codebook.pending is None


def test_a_compiled_step_accumulates():
    torch.compiler.reset()
    eager, other = pair()
    x = torch.randn(2, 12, 8)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for module in (eager, compiled):
        module(x[:1], accum_ema_update=True)
        module(x[1:])
    assert other._codebook.pending is None
    assert_same_state(eager, other)


def test_average_in_with_a_weight_for_each_code():
    averages = Averages(torch.tensor([4.0, 8.0]), torch.tensor([[4.0, 0.0], [8.0, 8.0]]))
    batch = BatchSums(torch.tensor([2.0, 0.0]), torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    averages.average_in(batch, 0.75, torch.tensor([2.0, 1.0]))
    assert averages.cluster_size.tolist() == [3.0, 6.0]
    assert averages.embed_avg.tolist() == [[3.0, 1.0], [6.0, 6.0]]


def test_codes_that_start_anew_stay_where_they_are_put():
    """Of two books at once: the next means are the codes, and other codes keep their averages."""
    averages = Averages(torch.ones(2, 3), torch.zeros(2, 3, 2))
    which = torch.tensor([[True, False, False], [False, False, True]])
    codes = torch.randn(2, 3, 2)
    averages.reset(which, codes, 4.0)
    assert averages.cluster_size.tolist() == [[4, 1, 1], [1, 1, 4]]
    means = torch.empty(2, 3, 2)
    averages.write_means(means, averages.cluster_size)
    torch.testing.assert_close(means, torch.where(which[..., None], codes, 0))


def test_codes_without_vectors_keep_their_direction():
    codes = torch.eye(2)
    averages = Averages(torch.zeros(2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    averages.write_directions(codes)
    torch.testing.assert_close(codes, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
