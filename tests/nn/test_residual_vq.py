"""ResidualVQ and GroupedResidualVQ beside the peer's, and where that is wrong."""

import functools

import pytest
import torch
from beside_the_peer import check, name, pair

from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.drop_in.residual_vq_routes import AtOnce

BASE = {"dim": 8, "codebook_size": 16, "num_quantizers": 4}
TOKENS = (2, 12, 8)
MASK = torch.arange(12) < torch.tensor([[5], [9]])
GRADIENT = {"learnable_codebook": True, "ema_update": False}
TRAINING = [
    {},
    {"codebook_dim": 4},
    {"rotation_trick": False},
    {"use_cosine_sim": True},
    {"codebook_size": (16, 8, 4), "num_quantizers": None},
    {"shared_codebook": True},
    {"shared_codebook": True, "kmeans_init": True, "rotation_trick": False},
    {"quant_grad_frac": 0.3},
    {"diveq": True, "threshold_ema_dead_code": 1},
    {"quantize_dropout": True},
    {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
    {"quantize_dropout": True, "quantize_dropout_multiple_of": 2},
    {"quantize_dropout": True, "quantize_dropout_multiple_of": 3},
    {"stochastic_sample_codes": True, "sample_codebook_temp": 0.1},
    GRADIENT,
    {**GRADIENT, "in_place_codebook_optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
    {"implicit_neural_codebook": True, "mlp_kwargs": {"dim_hidden": 6, "depth": 2}},
    {"implicit_neural_codebook": True, "use_cosine_sim": False, "codebook_dim": 4},
    {"beam_size": 3, **GRADIENT},
    {
        "beam_size": 3,
        **GRADIENT,
        "eval_beam_size": 2,
        "beam_score_quantizer_weights": [1.0, 0.5, 2.0, 1.0],
    },
    {"beam_size": 2, "quantize_dropout": True, "ema_update": False},
    {
        "beam_size": 1,
        "eval_beam_size": 3,
        "commitment_use_cross_entropy_loss": True,
        "ema_update": False,
    },
    {"beam_size": 2, "codebook_dim": 4, "quant_grad_frac": 0.5, **GRADIENT},
    {"commitment_weight": 0.2, "orthogonal_reg_weight": 1.0},
]
CALLS = [
    ({}, {"mask": MASK}),
    ({"return_zeros_for_masked_padding": False}, {"mask": MASK}),
    ({"beam_size": 3, **GRADIENT}, {"mask": MASK}),
    ({}, {"return_all_codes": True}),
    ({"quantize_dropout": True}, {"return_all_codes": True}),
    ({}, {"freeze_codebook": True}),
    (GRADIENT, {"beam_size": 2}),
    ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.5}),
    ({"quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 7}),
]


@pytest.mark.parametrize("options", TRAINING, ids=name)
def test_training(options):
    check(ResidualVQ, BASE | options, TOKENS, {})


def test_frozen_implicit_codes_learn_from_no_loss():
    options = {"implicit_neural_codebook": True}
    check(ResidualVQ, BASE | options, TOKENS, {"freeze_codebook": True})


def test_expiry():
    """One step: once codes are vectors of the batch, the peer's distances are rounding errors.

    A threshold that leaves some codes dead at every stage: else the peer draws nothing.
    """
    check(ResidualVQ, BASE | {"threshold_ema_dead_code": 9}, TOKENS, {}, steps=1)


@pytest.mark.parametrize(
    "options", [o for o in TRAINING if not {"kmeans_init", "diveq"} & o.keys()], ids=name
)
def test_evaluation(options):
    check(ResidualVQ, BASE | options, TOKENS, {}, training=False, steps=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("options", "call"), CALLS, ids=name)
def test_arguments_of_a_call(options, call, training):
    check(ResidualVQ, BASE | options, TOKENS, call, training, steps=2)


@pytest.mark.parametrize(
    "options",
    [{}, {"codebook_dim": 4}, {"quantize_dropout": True}, {"shared_codebook": True}],
    ids=name,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_groups(options, groups):
    options = {"dim": 16, "codebook_size": 16, "num_quantizers": 3, "groups": groups} | options
    check(GroupedResidualVQ, options, (2, 12, 16), {"return_all_codes": True})
    check(GroupedResidualVQ, options, (2, 12, 16), {"mask": MASK}, steps=1)
    theirs, ours = pair(GroupedResidualVQ, options)
    indices = ours.eval()(torch.randn(2, 12, 16))[1]
    expected = theirs.get_output_from_indices(indices)
    torch.testing.assert_close(ours.get_output_from_indices(indices), expected)
    torch.testing.assert_close(ours.codebooks, theirs.codebooks)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codebook_dim": 4},
        {"codebook_size": (16, 8), "num_quantizers": None},
        {"implicit_neural_codebook": True},
        {"quantize_dropout": True},
    ],
    ids=name,
)
def test_decoding(options):
    theirs, ours = pair(ResidualVQ, BASE | options)
    indices = ours.eval()(torch.randn(TOKENS))[1]
    some = [indices]
    if "quantize_dropout" in options:
        some += [indices[..., :2], indices.where(torch.arange(4) < 3, -1)]
    for chosen in some:
        for method in ("get_codes_from_indices", "get_output_from_indices"):
            expected = getattr(theirs, method)(chosen)
            torch.testing.assert_close(getattr(ours, method)(chosen), expected)
    torch.testing.assert_close(ours.codebooks, theirs.codebooks)


# From here on: what the peer lacks, or where it is wrong.


def rvq(**options):
    return ResidualVQ(**BASE | options)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"accept_image_fmap": True, "codebook_dim": 4}, (2, 8, 3, 4)),
        ({"accept_3d_fmap": True}, (2, 8, 2, 3, 2)),
        ({"channel_last": False}, (2, 8, 12)),
        ({}, (24, 8)),
        ({}, (2, 3, 4, 8)),
        ({"beam_size": 2, "accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"implicit_neural_codebook": True}, (24, 8)),
        ({"project_per_stage": True, "codebook_dim": 2}, (2, 12, 8)),
        ({"project_per_stage": True, "codebook_dim": 2, "use_cosine_sim": True}, (2, 12, 8)),
    ],
    ids=name,
)
def test_every_layout_decodes_to_what_forward_gave(options, shape):
    module = rvq(**options)
    module(torch.randn(shape))
    x = torch.randn(shape)
    quantized, indices, losses, codes = module.eval()(x, return_all_codes=True)
    first = 1 if {"accept_image_fmap", "accept_3d_fmap", "channel_last"} & options.keys() else -1
    assert quantized.shape == shape
    assert indices.shape == (*x.movedim(first, -1).shape[:-1], 4)
    assert losses.shape == (4,)
    assert codes.shape[:-1] == (4, *indices.shape[:-1])
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


def test_layouts_agree():
    flat, maps = rvq(), rvq(accept_image_fmap=True)
    maps.load_state_dict(flat.state_dict())
    x = torch.randn(2, 8, 3, 4)
    for module in (flat, maps):
        module.eval()
    expected = flat(x.movedim(1, -1))
    got = maps(x)
    torch.testing.assert_close(got[0].movedim(1, -1), expected[0])
    assert torch.equal(got[1], expected[1])


def test_all_stages_in_one_call_give_what_the_stages_give(monkeypatch):
    module = rvq().eval()
    x = torch.randn(50, 8)
    at_once = module(x)
    monkeypatch.setattr(AtOnce, "run", lambda *_: None)
    torch.testing.assert_close(module(x), at_once)


def test_right_codes_cost_less_than_wrong_ones():
    """The peer fails to unpack its own result here."""
    module = rvq().eval()
    x = torch.randn(2, 12, 8, requires_grad=True)
    indices = module(x)[1]
    quantized, right = module(x, indices=indices)
    _, wrong = module(x, indices=[(i + 1) % 16 for i in indices.unbind(-1)])
    assert 0 < right < wrong
    torch.testing.assert_close(quantized, module(x)[0])
    residual, total = x, 0.0
    for stage in range(4):
        scores = -torch.cdist(residual, module.codebooks[stage])
        total += torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), indices[..., stage].flatten()
        )
        residual = residual - module.codebooks[stage][indices[..., stage]]
    torch.testing.assert_close(right, total)


def test_projections_of_each_stage():
    """Improved RVQGAN's recipe: low-dimensional unit codes, learned by gradient, in one module."""
    module = rvq(project_per_stage=True, codebook_dim=2, use_cosine_sim=True, **GRADIENT)
    assert "layers.3.project_in.weight" in module.state_dict()
    x = torch.randn(2, 12, 8, requires_grad=True)
    quantized, _, losses = module(x)
    (quantized.sum() + losses.sum()).backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_a_frozen_shared_book_stays():
    module = rvq(shared_codebook=True, threshold_ema_dead_code=2)
    before = module.codebooks.clone()
    module(torch.randn(TOKENS), freeze_codebook=True)
    assert torch.equal(module.codebooks, before)


def test_a_shared_book_takes_dead_codes_from_the_whole_batch():
    """The peer looks at the first item only."""
    module = rvq(codebook_size=4, shared_codebook=True, threshold_ema_dead_code=9)
    x = torch.cat([torch.zeros(1, 12, 8), 5 + torch.randn(7, 12, 8)])
    module(x)
    assert (module.codebooks[0].norm(dim=-1) > 1).any()


@pytest.mark.parametrize("shared", [False, True])
def test_all_stages_learn_from_a_beam(shared):
    """In the peer only the first does."""
    module = rvq(beam_size=3, shared_codebook=shared)
    before = module.codebooks.clone()
    module(torch.randn(TOKENS))
    assert ((module.codebooks - before).abs().amax(dim=(1, 2)) > 0).all()


def test_a_beam_without_commitment_loss():
    module = rvq(beam_size=3, commitment_weight=0.0)
    x = torch.randn(TOKENS)
    greedy = module.eval()(x, beam_size=1)[0]
    best, _, losses = module.eval()(x)
    assert (best - x).square().sum() < (greedy - x).square().sum()
    module.train()(x)
    assert losses.shape == (4,)


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", [{}, {"threshold_ema_dead_code": 2}, GRADIENT], ids=name)
def test_compiled_steps_are_the_eager_ones(options):
    torch.compiler.reset()
    eager, other = rvq(**options), rvq(**options)
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for training in (True, True, False):
        results = []
        x = torch.randn(TOKENS)
        for module, function in ((eager, eager), (other, compiled)):
            module.train(training)
            leaf = x.clone().requires_grad_()
            torch.manual_seed(1)
            out = function(leaf)
            if training:
                (out[0].square().sum() + out[2].sum()).backward()
            results.append((*out, leaf.grad))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"num_quantizers": None}, "num_quantizers must be given"),
        ({"num_quantizers": 0}, "num_quantizers must be at least 1"),
        ({"codebook_size": (4, 4)}, "num_quantizers=4, but there are 2 codebook sizes"),
        ({"heads": 2}, "heads must be 1"),
        ({"eval_beam_size": 2}, "eval_beam_size needs beam_size"),
        ({"beam_size": 0}, "beam sizes must be at least 1"),
        ({"beam_score_quantizer_weights": [1.0]}, "must be 4 numbers"),
        ({"quantize_dropout_cutoff_index": 4}, r"must be in \[0, num_quantizers=4\), got 4"),
        ({"quantize_dropout_multiple_of": 0}, "multiple_of must be at least 1"),
        (
            {"codebook_size": (4, 8), "num_quantizers": None, "shared_codebook": True},
            "needs equal codebook sizes",
        ),
        ({"project_per_stage": True, "shared_codebook": True}, "exclude each other"),
        ({"no_such_argument": 1}, "no_such_argument"),
    ],
    ids=name,
)
def test_arguments_that_cannot_work(options, what):
    with pytest.raises((ValueError, TypeError), match=what):
        rvq(**options)


def test_calls_that_cannot_work():
    module = rvq()
    with pytest.raises(ValueError, match=r"x must be \[B, ..., D=8\]"):
        module(torch.randn(2, 12, 7))
    with pytest.raises(ValueError, match=r"indices must be \[2, 12, 4\], got \[2, 12, 3\]"):
        module(torch.randn(TOKENS), indices=torch.zeros(2, 12, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at most Q=4"):
        module.get_codes_from_indices(torch.zeros(2, 12, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="dim must be a multiple of groups=3, got 8"):
        GroupedResidualVQ(dim=8, groups=3, codebook_size=4, num_quantizers=2)
