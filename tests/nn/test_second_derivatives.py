"""Gradient penalties through every quantizer, beside vector-quantize-pytorch's and by formula."""

import pytest
import torch
from beside_the_peer import name, pair

from vqvae_fast import (
    GroupedResidualVQ,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
    VectorQuantizer,
)

LEARNABLE = {"learnable_codebook": True, "ema_update": False}
CASES = [
    *(
        (VectorQuantize, options)
        for options in (
            {},
            {"rotation_trick": False},
            LEARNABLE,
            LEARNABLE | {"rotation_trick": False},
            LEARNABLE | {"rotation_trick": False, "sync_update_v": 0.3},
            {"use_cosine_sim": True},
            {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
            {"codebook_dim": 4},
            {"commitment_use_cross_entropy_loss": True},
            {"codebook_diversity_loss_weight": 0.1},
            {"orthogonal_reg_weight": 0.2},
            {"threshold_ema_dead_code": 0.1},
        )
    ),
    *(
        (ResidualVQ, {"num_quantizers": 3} | options)
        for options in (
            {},
            {"rotation_trick": False},
            LEARNABLE,
            LEARNABLE | {"rotation_trick": False},
            {"quant_grad_frac": 0.5},
            {"shared_codebook": True},
            {"use_cosine_sim": True},
        )
    ),
    (GroupedResidualVQ, {"num_quantizers": 2, "groups": 2}),
    (SimVQ, {}),
    (SimVQ, {"rotation_trick": False}),
    (ResidualSimVQ, {"num_quantizers": 2}),
]


def penalised(module, x):
    """Gradients of a penalty on the input's gradient, which depends on it through x.tanh() too."""
    torch.manual_seed(0)
    u = x.clone().requires_grad_()
    out = module(u.tanh())
    scalar = out[0].pow(3).sum() + out[2].square().sum()
    (gradient,) = torch.autograd.grad(scalar, u, create_graph=True)
    leaves = [u, *module.parameters()]
    found = torch.autograd.grad(gradient.pow(2).sum(), leaves, allow_unused=True)
    return [
        torch.zeros_like(t) if grad is None else grad for t, grad in zip(leaves, found, strict=True)
    ]


@pytest.mark.parametrize(("ours", "options"), CASES, ids=name)
def test_a_gradient_penalty_is_the_peers(ours, options):
    theirs, module = pair(ours, {"dim": 8, "codebook_size": 16} | options)
    x = torch.randn(3, 20, 8)
    expected, found = penalised(theirs.double(), x.double()), penalised(module.double(), x.double())
    assert expected[0].any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{}, {"learning": "ema"}, {"dead_code_threshold": 0.1}], ids=name
)
def test_a_gradient_penalty_of_the_reference_quantizer(options):
    module = VectorQuantizer(16, 8, beta=0.25, **options).double()
    with torch.no_grad():
        module.embedding.weight.normal_()
    codes = (
        module.embedding.weight.detach().clone().requires_grad_(options.get("learning") != "ema")
    )
    u = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    penalties = []
    loss, z_q, _, _, indices = module(u.tanh())
    q = codes[indices[:, 0]].view(2, 4, 5, 8).movedim(-1, 1)
    z = u.tanh()
    beside = 0.25 * (z - q.detach()).square().mean()
    if codes.requires_grad:
        beside = beside + (z.detach() - q).square().mean()
    for quantized, its_loss in ((z_q, loss), (z + (q - z).detach(), beside)):
        scalar = quantized.pow(3).sum() + its_loss.square()
        (gradient,) = torch.autograd.grad(scalar, u, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.pow(2).sum(), u)[0])
    torch.testing.assert_close(*penalties)


def test_the_optimizer_gets_the_gradient_of_a_penalty():
    """As in training: the gradient norm is part of the loss, and the encoder's weights learn."""
    encoder = torch.nn.Linear(8, 8).double()
    theirs, module = pair(VectorQuantize, {"dim": 8, "codebook_size": 16})
    x = torch.randn(40, 8, dtype=torch.float64, requires_grad=True)
    weights = []
    for quantizer in (theirs.double(), module.double()):
        torch.manual_seed(0)
        quantized, _, loss = quantizer(encoder(x))
        (gradient,) = torch.autograd.grad(quantized.square().mean(), x, create_graph=True)
        encoder.zero_grad()
        (loss.sum() + gradient.norm(dim=-1).sub(1).square().mean()).backward()
        weights.append(encoder.weight.grad.clone())
    torch.testing.assert_close(*weights)


def test_a_compiled_quantizer_refuses_it():
    torch.compiler.reset()
    module = torch.compile(VectorQuantize(8, 16), backend="aot_eager", fullgraph=True)
    u = torch.randn(3, 20, 8, requires_grad=True)
    out, _, loss = module(u)
    (gradient,) = torch.autograd.grad(out.pow(3).sum() + loss, u, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()
