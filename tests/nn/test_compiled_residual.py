"""Residual quantizers under torch.compile: training steps and evaluation, eager beside compiled."""

import copy

import pytest
import torch
from beside_the_peer import name
from torch import nn

from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.drop_in.residual_sim_vq import ResidualSimVQ
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.quantize_dropout import QuantizeDropout

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
    seen = []
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
        seen.append(results[0])
    return seen


@pytest.mark.quick(2)
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


@pytest.mark.quick(1)
@pytest.mark.parametrize("make", [ResidualVQ, ResidualSimVQ])
def test_batches_of_any_size(make):
    eager, other = (make(**BASE) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_same_steps(eager, other, compiled, [(2, 12, 8), (5, 9, 8)], {})


COARSE = {"quantize_dropout_cutoff_index": 1, "quantize_dropout_multiple_of": 2}
DROPOUT = [
    (ResidualVQ, {}, {}),
    (ResidualVQ, {"quantize_dropout_cutoff_index": 1, "threshold_ema_dead_code": 1}, {}),
    (ResidualVQ, COARSE | {"affine_param": True}, {"mask": MASK}),
    (ResidualVQ, {"codebook_dim": 4, "quant_grad_frac": 0.3}, {"return_all_codes": True}),
    (ResidualVQ, {"shared_codebook": True}, {}),
    (ResidualVQ, {"diveq": True}, {}),
    (ResidualVQ, {"beam_size": 3, "threshold_ema_dead_code": 1}, {"mask": MASK}),
    (ResidualVQ, {"beam_size": 2, "commitment_weight": 0.0}, {}),
    (ResidualVQ, {"implicit_neural_codebook": True}, {}),
    (ResidualVQ, {"commitment_use_cross_entropy_loss": True, "stochastic_sample_codes": True}, {}),
    (ResidualVQ, GRADIENT | {"vq_bridge": nn.Linear(8, 8), "num_quantizers": 3}, {}),
    (ResidualSimVQ, {}, {}),
    (GroupedResidualVQ, {"groups": 2}, {}),
]


@pytest.mark.quick(2)
@pytest.mark.parametrize(("make", "options", "call"), DROPOUT, ids=name)
def test_dropout(make, options, call):
    """The same draws leave out the same stages, and what is left out learns nothing."""
    options = BASE | {"num_quantizers": 4, "quantize_dropout": True} | options
    eager, other = (make(**copy.deepcopy(options)) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    seen = assert_same_steps(eager, other, compiled, [(2, 12, 8)] * 4, call)
    assert len({(out[1] < 0).sum().item() for out in seen}) > 1


def test_dropout_does_not_break_the_graph_of_evaluation():
    module = ResidualVQ(**BASE, quantize_dropout=True).eval()
    x = torch.randn(2, 12, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_dropout_with_inductor():
    options = BASE | {"num_quantizers": 4, "quantize_dropout": True, "threshold_ema_dead_code": 1}
    eager, other = (ResidualVQ(**options) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    with torch._inductor.config.patch(fallback_random=True):
        compiled = torch.compile(other, fullgraph=True)
        seen = assert_same_steps(eager, other, compiled, [(2, 12, 8)] * 3, {})
    assert len({(out[1] < 0).sum().item() for out in seen}) > 1


@pytest.mark.parametrize("make", [ResidualVQ, ResidualSimVQ])
def test_a_seed_leaves_out_the_same_stages_compiled(make):
    eager, other = (make(**BASE | {"num_quantizers": 4}, quantize_dropout=True) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, 8)
    for seed in range(6):
        call = {"rand_quantize_dropout_fixed_seed": seed}
        torch.testing.assert_close(compiled(x, **call), eager(x, **call))


@pytest.mark.slow
def test_every_last_stage_is_as_likely_compiled_as_eager():
    dropout = QuantizeDropout(8, 2, 3)
    torch.manual_seed(0)
    eager = [dropout.last(torch.device("cpu"), None) for _ in range(200)]
    last = torch.compile(
        lambda: dropout.last(torch.device("cpu"), None), fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(0)
    assert [int(last()) for _ in range(200)] == eager
    assert {*eager} == {2, 5, 7}


@pytest.mark.slow
def test_kmeans_starts_the_stages_that_are_left_out():
    module = ResidualVQ(**BASE, quantize_dropout=True, kmeans_init=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(torch.randn(4, 12, 8), rand_quantize_dropout_fixed_seed=_seed_of_the_first_stage())
    for stage in module.layers:
        assert stage._codebook.initted
        assert stage._codebook.embed.any()


def test_expiry_of_a_shared_book_takes_vectors_of_stages_that_ran():
    """Fewer vectors than dead codes: the stage leaves some, and the book draws again at the end."""
    module = ResidualVQ(
        **BASE, quantize_dropout=True, shared_codebook=True, threshold_ema_dead_code=1e6
    )
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 8)
    for _ in range(3):
        before = module.codebooks[0]
        _, indices, _ = compiled(x, rand_quantize_dropout_fixed_seed=_seed_of_the_first_stage())
        left = x - before[indices[..., 0]]
        codes = module.codebooks[0][:, None]
        assert ((codes - x).abs().amax(dim=-1) < 1e-4).any(dim=0).all()
        assert not ((codes - left).abs().amax(dim=-1) < 1e-4).any()


def _seed_of_the_first_stage():
    cpu = torch.device("cpu")
    return next(seed for seed in range(99) if QuantizeDropout(2, 0, 1).last(cpu, seed) == 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"commitment_use_cross_entropy_loss": True},
        {"rotation_trick": False},
        {"use_cosine_sim": True},  # its averages are reduced where they are written
    ],
    ids=name,
)
def test_inductor_takes_the_gradient_of_the_codes_that_were_searched(options):
    """It makes again in the backward pass what is cheap, from codes that have moved meanwhile."""
    eager, other = (ResidualVQ(**BASE | {"num_quantizers": 3} | options) for _ in range(2))
    other.load_state_dict(eager.state_dict())
    assert_same_steps(eager, other, torch.compile(other, fullgraph=True), [(2, 12, 8)] * 2, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"codebook_diversity_loss_weight": 0.1}], ids=name)
def test_the_backward_pass_of_inductor_leaves_the_result_alone(options):
    module = VectorQuantize(dim=8, codebook_size=16, **options)
    out, _, loss = torch.compile(module, fullgraph=True)(torch.randn(2, 12, 8, requires_grad=True))
    before = out.detach().clone()
    (out.square().sum() + loss).backward()
    assert torch.equal(out, before)
