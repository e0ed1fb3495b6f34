"""Which route serves a call: the one that takes least time and memory, wherever it may."""

import copy
import functools

import pytest
import torch

from vqvae_fast.nn import ResidualVQ, VectorQuantize
from vqvae_fast.nn.drop_in import residual_vq_routes as residual_routes
from vqvae_fast.nn.drop_in import vector_quantize_routes as routes

GRADIENT = {"learnable_codebook": True, "ema_update": False}
SGD = functools.partial(torch.optim.SGD, lr=0.1)
MASK = torch.ones(2, 6, dtype=torch.bool)


@pytest.fixture
def taken(monkeypatch):
    """The names of the routes whose outcome counted."""
    names = []

    def recorded(kind):
        run = kind.run

        def watched(self, *arguments):
            outcome = run(self, *arguments)
            if outcome is not None:
                names.append(kind.__name__)
            return outcome

        monkeypatch.setattr(kind, "run", watched)

    for kind in (routes.Evaluation, routes.StepByStep, routes.OnePiece):
        recorded(kind)
    for name in ("WithTargets", "ByBeams", "AtOnce", "PlainStages", "StageByStage"):
        recorded(getattr(residual_routes, name))
    return names


@pytest.mark.parametrize(
    ("options", "call", "training", "route"),
    [
        ({}, {}, True, "OnePiece"),
        (GRADIENT, {}, True, "OnePiece"),
        ({"rotation_trick": False, "freeze_codebook": True}, {}, True, "OnePiece"),
        ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.0}, True, "OnePiece"),
        ({"stochastic_sample_codes": True}, {}, True, "StepByStep"),
        ({"straight_through": True}, {}, True, "StepByStep"),
        ({"cosine_search": True}, {}, True, "StepByStep"),
        ({"commitment_weight": 0.0}, {}, True, "StepByStep"),
        ({"commitment_use_cross_entropy_loss": True}, {}, True, "StepByStep"),
        ({"codebook_diversity_loss_weight": 0.1}, {}, True, "StepByStep"),
        ({"route_gradients_to_input": False}, {}, True, "StepByStep"),
        (GRADIENT | {"sync_update_v": 0.5}, {}, True, "StepByStep"),
        (GRADIENT | {"in_place_codebook_optimizer": SGD}, {}, True, "StepByStep"),
        ({}, {"mask": MASK}, True, "StepByStep"),
        ({}, {"topk": 2}, True, "StepByStep"),
        ({}, {"indices": torch.zeros(2, 6, dtype=torch.int64)}, True, "StepByStep"),
        ({}, {}, False, "Evaluation"),
        ({}, {"topk": 2}, False, "Evaluation"),
    ],
    ids=str,
)
def test_routes_of_vector_quantize(taken, options, call, training, route):
    module = VectorQuantize(dim=4, codebook_size=8, **options).train(training)
    module(torch.randn(2, 6, 4, requires_grad=True), **call)
    assert taken == [route]


@pytest.mark.parametrize(
    ("options", "call", "training", "route"),
    [
        ({}, {}, True, "PlainStages"),
        ({"codebook_size": (8, 4, 8), "num_quantizers": None}, {}, True, "PlainStages"),
        ({"quantize_dropout": True}, {}, True, "StageByStage"),
        ({"shared_codebook": True}, {}, True, "StageByStage"),
        ({"quant_grad_frac": 0.5}, {}, True, "StageByStage"),
        ({"use_cosine_sim": True}, {}, True, "StageByStage"),
        ({"implicit_neural_codebook": True}, {}, True, "StageByStage"),
        ({}, {"mask": MASK}, True, "StageByStage"),
        ({}, {"beam_size": 2}, True, "ByBeams"),
        ({}, {"indices": torch.zeros(2, 6, 3, dtype=torch.int64)}, True, "WithTargets"),
        ({}, {}, False, "AtOnce"),
        ({"quantize_dropout": True, "shared_codebook": True}, {}, False, "AtOnce"),
        ({"codebook_size": (8, 4, 8), "num_quantizers": None}, {}, False, "StageByStage"),
        ({"use_cosine_sim": True}, {}, False, "StageByStage"),
        ({"cosine_search": True}, {}, False, "StageByStage"),
        ({"affine_param": True}, {}, False, "StageByStage"),
        ({}, {"mask": MASK}, False, "StageByStage"),
    ],
    ids=str,
)
def test_routes_of_residual_vq(taken, options, call, training, route):
    sizes = {"dim": 4, "codebook_size": 8, "num_quantizers": 3}
    module = ResidualVQ(**(sizes | options)).train(training)
    with torch.set_grad_enabled(training):
        module(torch.randn(2, 6, 4, requires_grad=training), **call)
    assert taken[-1] == route
    assert [name for name in taken if hasattr(residual_routes, name)] == [route]


def test_routes_follow_a_copy():
    """A copy's routes are its own: they see its codes, not those of the original."""
    module = VectorQuantize(dim=4, codebook_size=8)
    other = copy.deepcopy(module)
    before = module.codebook.clone()
    other(torch.randn(2, 6, 4))
    assert torch.equal(module.codebook, before)
    assert not torch.equal(other.codebook, before)


def test_routes_follow_a_changed_attribute(taken):
    module = VectorQuantize(dim=4, codebook_size=8)
    x = torch.randn(2, 6, 4, requires_grad=True)
    torch.autograd.grad(module(x)[0].sum(), x)
    module.rotation_trick = False
    (straight,) = torch.autograd.grad(module(x)[0].sum(), x)
    module.route_gradients_to_input = False
    assert torch.equal(straight, torch.ones_like(x))
    assert not module(x)[0].requires_grad
    assert taken == ["OnePiece", "OnePiece", "StepByStep"]
