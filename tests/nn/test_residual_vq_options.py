"""ResidualVQ: options that the peer drops on the way to its stages, and combinations of them."""

import functools

import pytest
import torch
from beside_the_peer import check, name

from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.steps.regularisers import orthogonal_loss

BASE = {"dim": 8, "codebook_size": 16, "num_quantizers": 4}
TOKENS = (2, 12, 8)


def rvq(**options):
    return ResidualVQ(**BASE | options)


@pytest.mark.parametrize("options", [{}, {"shared_codebook": True}, {"beam_size": 2}])
@pytest.mark.parametrize("make", [ResidualVQ, GroupedResidualVQ])
def test_a_module_made_frozen_stays_so_unless_a_call_says_otherwise(make, options):
    """The peer's calls pass False to their stages, whatever the constructor was given."""
    module = make(**BASE, freeze_codebook=True, **options)
    before = module.codebooks.clone()
    module(torch.randn(TOKENS))
    assert torch.equal(module.codebooks, before)
    module(torch.randn(TOKENS), freeze_codebook=False)
    assert not torch.equal(module.codebooks, before)


def test_cosine_search_in_every_mode(monkeypatch):
    module = rvq(cosine_search=True).eval()
    x = torch.randn(TOKENS)
    quantized, indices, _ = module(x)
    residual = x
    for stage, book in enumerate(module.codebooks):
        unit = torch.nn.functional.normalize
        expected = (unit(residual, dim=-1) @ unit(book, dim=-1).T).argmax(dim=-1)
        assert torch.equal(indices[..., stage], expected)
        residual = residual - book[expected]
    torch.testing.assert_close(quantized, x - residual)


@pytest.mark.parametrize("dim", [8, 4])
def test_directional_reparametrisation_has_no_noise_in_eval(dim):
    """The peer's output in eval is not what its indices decode to."""
    module = rvq(diveq=True, codebook_dim=dim).eval()
    x = torch.randn(TOKENS)
    quantized, indices, _ = module(x)
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            {"layernorm_after_project_in": True, "codebook_dim": 4},
            "layernorm_after_project_in needs project_per_stage",
        ),
        ({"quant_grad_frac": 1.5}, r"quant_grad_frac must be in \[0, 1\], got 1.5"),
        ({"mlp_kwargs": {"depth": 2}}, "mlp_kwargs need implicit_neural_codebook"),
        ({"beam_size": 2, "cosine_search": True}, "beam search does not go with cosine_search"),
        (
            {"beam_size": 2, "commitment_use_cross_entropy_loss": True},
            "beam search in training does not go with commitment_use_cross_entropy_loss",
        ),
        (
            {
                "beam_size": 2,
                "learnable_codebook": True,
                "in_place_codebook_optimizer": torch.optim.SGD,
            },
            "beam search in training does not go with in_place_codebook_optimizer",
        ),
    ],
)
def test_options_that_would_be_ignored_or_fail_later(options, what):
    with pytest.raises(ValueError, match=what):
        rvq(**options)


def test_sizes_in_a_list_as_a_configuration_file_has_them():
    module = rvq(codebook_size=[16, 8], num_quantizers=None)
    assert module.codebook_sizes == (16, 8)


def test_a_norm_behind_the_projection_of_each_stage():
    module = rvq(project_per_stage=True, codebook_dim=4, layernorm_after_project_in=True)
    assert isinstance(module.layers[3].project_in[1], torch.nn.LayerNorm)
    module(torch.randn(TOKENS))


def test_implicit_codes_that_learn_by_directional_reparametrisation():
    options = {"diveq": True, "implicit_neural_codebook": True, "threshold_ema_dead_code": 0}
    check(ResidualVQ, BASE | options, TOKENS, {})


@pytest.mark.parametrize("training", [True, False])
def test_stages_that_were_left_out_have_no_right_codes(training):
    """The peer refuses such indices, and has to wait for the device to see them."""
    module = rvq().train(training)
    x = torch.randn(TOKENS)
    indices = torch.randint(16, (*TOKENS[:2], 4))
    partly = indices.where(torch.arange(4) < 2, -1)
    fewer = rvq(num_quantizers=2).train(training)
    state = module.state_dict().items()
    fewer.load_state_dict({k: v for k, v in state if k.split(".")[1] in "01"})
    expected = fewer(x, indices=partly[..., :2])[1]
    torch.testing.assert_close(module(x, indices=partly)[1], expected)
    assert module(x, indices=torch.full_like(indices, -1))[1] == 0


def test_a_shared_book_with_an_orthogonality_loss():
    """The peer's gradient is taken at the codes that the averages have written since."""
    module = rvq(shared_codebook=True, orthogonal_reg_weight=0.5)
    codes = module.codebooks[:1].detach().clone().requires_grad_()
    module(torch.randn(TOKENS))[2].sum().backward()
    (4 * 0.5 * orthogonal_loss(codes)).backward()
    torch.testing.assert_close(module.layers[0]._codebook.embed.grad, codes.grad)
    assert codes.grad.any()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"codebook_size": 4, "beam_size": 6}, TOKENS),
        ({"implicit_neural_codebook": True}, TOKENS),
        ({"kmeans_init": True}, (2, 60, 8)),
        ({"use_cosine_sim": True, "kmeans_init": True}, (2, 60, 8)),
        ({"accept_image_fmap": True, "quantize_dropout": True}, (2, 8, 5, 3)),
        ({"project_per_stage": True, "codebook_dim": 4}, TOKENS),
        ({"shared_codebook": True, "threshold_ema_dead_code": 1}, (24, 8)),
        ({"diveq": True}, TOKENS),
    ],
    ids=name,
)
def test_beams_of_which_the_peer_has_none(options, shape):
    module = rvq(**{"beam_size": 3} | options)
    for _ in range(2):
        x = torch.randn(shape, requires_grad=True)
        quantized, indices, losses = module(x)
        (quantized.sum() + losses.sum()).backward()
        assert losses.shape == (4,)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    quantized, indices, _ = module.eval()(x)
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


def test_a_shared_book_takes_its_optimizers_step():
    """The peer leaves the gradient where it is."""
    module = rvq(
        shared_codebook=True,
        learnable_codebook=True,
        in_place_codebook_optimizer=functools.partial(torch.optim.SGD, lr=1.0),
    )
    before = module.codebooks.clone()
    module(torch.randn(TOKENS))
    assert not torch.equal(module.codebooks, before)
    assert module.layers[3]._codebook.embed.grad is None


@pytest.mark.parametrize("options", [{"diveq": True}, {"commitment_use_cross_entropy_loss": True}])
def test_a_frozen_book_gets_no_gradient(options):
    """The peer's does, other than from the commitment loss."""
    learnable = {"learnable_codebook": True, "ema_update": False}
    module = rvq(**options | learnable)
    x = torch.randn(TOKENS, requires_grad=True)
    quantized, _, losses = module(x, freeze_codebook=True)
    (quantized.sum() + losses.sum()).backward()
    assert x.grad.any()
    assert all(stage._codebook.embed.grad is None for stage in module.layers)


NARROW = [
    {},
    {"codebook_dim": 4},
    {"codebook_dim": 4, "project_per_stage": True},
    {"implicit_neural_codebook": True},
    {"beam_size": 2},
    {"shared_codebook": True, "threshold_ema_dead_code": 1},
    {"diveq": True, "threshold_ema_dead_code": 1},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", NARROW, ids=name)
def test_models_of_other_dtypes(options, dtype):
    module = rvq(**options).to(dtype)
    for training in (True, False):
        x = torch.randn(TOKENS, dtype=dtype, requires_grad=True)
        quantized, indices, losses = module.train(training)(x)
        assert quantized.dtype == dtype
        decoded = module.get_output_from_indices(indices)
        if "codebook_dim" in options:  # without a projection nothing has the model's dtype
            assert decoded.dtype == dtype
        if not training:
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(
                decoded.double(), quantized.double(), rtol=tolerance, atol=10 * tolerance
            )
        if training:
            (quantized.sum() + losses.sum()).backward()
            assert x.grad.dtype == dtype
            assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [o for o in NARROW if "codebook_dim" not in o], ids=name)
def test_vectors_of_other_dtypes(options, dtype):
    module = rvq(**options)
    for training in (True, False):
        x = torch.randn(TOKENS, dtype=dtype, requires_grad=True)
        quantized, _, losses = module.train(training)(x)
        assert quantized.dtype == dtype
        if training:
            (quantized.sum() + losses.sum()).backward()
            assert x.grad.dtype == dtype


@pytest.mark.parametrize("options", NARROW, ids=name)
def test_an_empty_batch_costs_nothing_and_breaks_nothing(options):
    """The peer's loss is NaN."""
    module = rvq(**options)
    for training in (True, False):
        quantized, indices, losses = module.train(training)(torch.randn(2, 0, 8))
        assert quantized.shape == (2, 0, 8)
        assert indices.shape == (2, 0, 4)
        assert not losses.any()
    for key, value in module.state_dict().items():
        assert value.isfinite().all(), key
