"""What VectorQuantize does beyond the peer: results, losses and gradients."""

import pytest
import torch
from vector_quantizers import GRADIENT, frozen, quantizer

import vqvae_fast


@pytest.mark.parametrize(
    "options",
    [{"kmeans_init": True}, {"affine_param": True}, {"threshold_ema_dead_code": 5}, GRADIENT],
    ids=str,
)
def test_evaluation_changes_no_state(options):
    module = quantizer(**options).eval()
    before = frozen(module)
    _, _, loss = module(torch.randn(2, 12, 8))
    assert loss == 0
    assert loss.shape == ()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "options",
    [
        {"commitment_use_cross_entropy_loss": True},
        {"codebook_diversity_loss_weight": 1.0, "codebook_diversity_temperature": 1.0},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_codes_that_were_searched(options):
    """And not of the codes that the moving average has written since."""
    moving, still = quantizer(**options), quantizer(**options, ema_update=False)
    still.load_state_dict(moving.state_dict())
    gradients = []
    for module in (moving, still):
        x = torch.linspace(-1, 1, 192).view(2, 12, 8).requires_grad_()
        module(x)[2].backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert not torch.equal(moving.codebook, still.codebook)


def test_projections_learn_from_an_input_without_gradient():
    module = quantizer(codebook_dim=3)
    quantized, _, _ = module(torch.randn(2, 12, 8))
    quantized.sum().backward()
    assert module.project_in.weight.grad.any()


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_cosine_similarity_with_a_learnable_codebook(rotation_trick):
    module = quantizer(use_cosine_sim=True, rotation_trick=rotation_trick, **GRADIENT)
    with torch.no_grad():
        module._codebook.embed.mul_(7)
    x = torch.randn(2, 12, 8, requires_grad=True)
    quantized, indices, loss = module(x)
    unit = torch.nn.functional.normalize(module.codebook, dim=-1)
    direction = torch.nn.functional.normalize(x, dim=-1)
    assert torch.equal(indices, (direction @ unit.T).argmax(dim=-1))
    torch.testing.assert_close(quantized, unit[indices])
    loss.backward()
    along = (module._codebook.embed.grad[0] * unit).sum(dim=-1)
    torch.testing.assert_close(along, torch.zeros(16), atol=1e-6, rtol=0)
    assert module._codebook.embed.grad.any()


def test_the_search_of_a_bfloat16_model_is_exact():
    module = quantizer(codebook_size=512).bfloat16()
    assert module._codebook.embed.dtype == torch.float32
    x = torch.randn(2, 100, 8).bfloat16()
    quantized, indices, _ = module.eval()(x)
    assert quantized.dtype == torch.bfloat16
    assert torch.equal(indices, vqvae_fast.nearest_code(x.float(), module.codebook).indices)
    module.train()(x.requires_grad_())[2].backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"codebook_diversity_loss_weight": 1.0}], ids=str)
def test_autocast_leaves_the_search_alone(options):
    module = quantizer(codebook_size=512, **options)
    x = torch.randn(2, 100, 8)
    wanted = module.eval()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
    assert torch.equal(got[1], wanted[1])
    assert torch.equal(got[0], wanted[0])


def test_an_empty_batch():
    module = quantizer(threshold_ema_dead_code=2)
    before = frozen(module)
    quantized, indices, _ = module(torch.randn(0, 12, 8))
    assert quantized.shape == (0, 12, 8)
    assert indices.shape == (0, 12)
    assert module._codebook.embed.isfinite().all()
    assert set(before) == set(module.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 8)),
        ({}, (2, 3, 4, 8)),
        ({"accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"channel_last": False}, (2, 8, 12)),
    ],
    ids=str,
)
def test_the_parts_of_the_losses_of_several_codes(options, shape, training):
    module = quantizer(commitment_weight=0.5, **options).train(training)
    _, indices, loss, parts = module(torch.randn(shape), topk=3, return_loss_breakdown=True)
    assert parts.commitment.shape == loss.shape == indices.shape
    torch.testing.assert_close(loss, 0.5 * parts.commitment)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "shape"),
    [(GRADIENT, (2, 12, 8)), (GRADIENT | {"accept_image_fmap": True}, (2, 8, 3, 4))],
    ids=["tokens", "feature map"],
)
def test_the_result_may_be_written_to(options, shape, training):
    quantized, _, _ = quantizer(**options).train(training)(torch.randn(shape, requires_grad=True))
    torch.nn.functional.relu(quantized, inplace=True)
    assert (quantized >= 0).all()


def test_a_frozen_codebook_has_no_gradient():
    module = quantizer(orthogonal_reg_weight=0.5, freeze_codebook=True)
    module(torch.randn(2, 12, 8, requires_grad=True))[2].backward()
    assert module._codebook.embed.grad is None


def test_two_calls_before_one_backward_pass():
    module = quantizer(orthogonal_reg_weight=0.5, threshold_ema_dead_code=2)
    first, second = (module(torch.randn(2, 12, 8))[2] for _ in range(2))
    (first + second).backward()
    assert module._codebook.embed.grad.isfinite().all()


def test_losses_that_someone_writes_to():
    module = quantizer()
    x = torch.randn(2, 12, 8)
    module.eval()(x, return_loss_breakdown=True)[3].commitment.add_(5)
    assert module(x)[2] == 0


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"x must be a tensor of floats, got torch\.int64"):
        quantizer()(torch.zeros(2, 8, dtype=torch.int64))
