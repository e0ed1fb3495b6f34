"""Residual quantizers under torch.compile: training steps and evaluation, eager beside compiled."""

import pytest
import torch
from beside_the_peer import name

from vqvae_fast.nn.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.residual_sim_vq import ResidualSimVQ
from vqvae_fast.nn.residual_vq import ResidualVQ

BASE = {"dim": 8, "codebook_size": 16, "num_quantizers": 2}
MASK = torch.arange(12) < torch.tensor([[5], [9]])
GRADIENT = {"learnable_codebook": True, "ema_update": False}
CASES = [
    ({}, {"mask": MASK}),
    ({"codebook_dim": 4, "quant_grad_frac": 0.3}, {"return_all_codes": True}),
    ({"codebook_dim": 2, "project_per_stage": True, "use_cosine_sim": True, **GRADIENT}, {}),
    ({"shared_codebook": True, "threshold_ema_dead_code": 1}, {}),
    ({"shared_codebook": True, "threshold_ema_dead_code": 1}, {"mask": MASK}),
    ({"implicit_neural_codebook": True}, {}),
    ({"beam_size": 2}, {"mask": MASK}),
    ({"diveq": True, "threshold_ema_dead_code": 1}, {}),
    ({"codebook_size": (16, 8), "num_quantizers": None}, {"freeze_codebook": True}),
    ({}, {"indices": torch.randint(16, (2, 12, 2), generator=torch.Generator().manual_seed(0))}),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def assert_same_steps(eager, compiled_module, compiled, shapes, call):
    for number, shape in enumerate(shapes):
        x = torch.randn(shape)
        results = []
        for function in (eager, compiled):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(number)
            out = function(leaf, **call)
            if eager.training:
                (out[0].square().sum() + out[1 if "indices" in call else 2].sum()).backward()
            results.append((*out, leaf.grad))
        torch.testing.assert_close(*results)
        state = compiled_module.state_dict()
        for key, value in eager.state_dict().items():
            torch.testing.assert_close(state[key], value)


@pytest.mark.parametrize(("options", "call"), CASES, ids=name)
def test_training(options, call):
    eager, other = (ResidualVQ(**BASE | options) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert_same_steps(eager, other, compiled, [(2, 12, 8)] * 2, call)


@pytest.mark.parametrize(("options", "call"), CASES[5:7], ids=name)
def test_evaluation(options, call):
    eager, other = (ResidualVQ(**BASE | options).eval() for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert_same_steps(eager, other, compiled, [(2, 12, 8)], call)


@pytest.mark.parametrize("make", [ResidualVQ, ResidualSimVQ])
def test_batches_of_any_size(make):
    eager, other = (make(**BASE) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_same_steps(eager, other, compiled, [(2, 12, 8), (5, 9, 8)], {})


# torch's compiler looks at the .grad of what it was given behind the break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("make", [ResidualVQ, ResidualSimVQ, GroupedResidualVQ])
def test_dropout_breaks_the_graph_but_not_the_training(make):
    eager, other = (make(**BASE, quantize_dropout=True) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, backend="aot_eager")
    assert_same_steps(eager, other, compiled, [(2, 12, 8)] * 4, {})


def test_dropout_does_not_break_the_graph_of_evaluation():
    module = ResidualVQ(**BASE, quantize_dropout=True).eval()
    x = torch.randn(2, 12, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
