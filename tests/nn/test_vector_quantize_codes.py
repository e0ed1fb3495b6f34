"""How the codes of VectorQuantize begin, are set, move and come back."""

import functools

import pytest
import torch
from vector_quantizers import GRADIENT, frozen, quantizer


@pytest.mark.parametrize("cosine", [False, True])
def test_k_means_with_fewer_vectors_than_codes(cosine):
    module = quantizer(codebook_size=64, kmeans_init=True, use_cosine_sim=cosine, decay=1.0)
    x = torch.randn(1, 9, 8)
    quantized, _, _ = module(x)
    wanted = torch.nn.functional.normalize(x, dim=-1) if cosine else x
    torch.testing.assert_close(quantized, wanted, rtol=1e-3, atol=1e-3)
    assert module.codebook.abs().sum(dim=-1).min() > 0, "a code without vectors is not zero"


def test_k_means_waits_for_vectors():
    module = quantizer(kmeans_init=True)
    module(torch.randn(0, 12, 8))
    assert not module._codebook.initted
    module(torch.randn(2, 12, 8))
    assert module._codebook.initted


@pytest.mark.parametrize("by_name", [True, False], ids=["by its name", "by the next step"])
@pytest.mark.parametrize("kmeans_init", [True, False])
def test_k_means_again(kmeans_init, by_name):
    """Users clear the buffer, and call k-means by its name or train on."""
    module = quantizer(kmeans_init=kmeans_init)
    module(torch.randn(2, 12, 8))
    initted = module._codebook.initted
    if by_name:
        initted.data.copy_(torch.tensor(False))
        module._codebook.init_embed_(50 + torch.randn(1, 24, 8))
    else:
        initted.fill_(False)
        module.eval()(torch.randn(2, 12, 8))
        assert not initted
        module.train()(50 + torch.randn(2, 12, 8))
    assert initted
    assert module.codebook.mean() > 40


def test_someone_else_sets_the_codes():
    module = quantizer(kmeans_init=True)
    codes = torch.randn(16, 8)
    module._codebook.embed.copy_(codes)
    module._codebook.initted.data.copy_(torch.tensor(True))
    quantized, indices, _ = module(torch.randn(2, 12, 8))
    assert torch.equal(quantized, codes[indices])


def test_a_functional_call_starts_its_own_tensors():
    module = quantizer(kmeans_init=True)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 12, 8)
    torch.func.functional_call(module, own, (x,))
    assert own["_codebook.initted"]
    assert own["_codebook.embed"].any()
    assert not module._codebook.initted
    quantized, _, _ = module(x)
    assert module._codebook.initted
    assert quantized.any(), "the module's own codes would be zeros"


def test_older_checkpoints_load():
    """initted was [1] and a float once."""
    module = quantizer(kmeans_init=True)
    state = quantizer().state_dict()
    state["_codebook.initted"] = torch.tensor([1.0])
    module.load_state_dict(state)
    assert module._codebook.initted.dtype == torch.bool
    x = torch.randn(2, 12, 8)
    quantized, indices, _ = module(x)
    assert torch.equal(quantized, state["_codebook.embed"][0][indices])


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, GRADIENT], ids=str)
def test_a_collapsed_codebook_recovers(options):
    data = torch.nn.functional.normalize(torch.randn(64, 8), dim=-1) * 5
    module = quantizer(codebook_size=64, threshold_ema_dead_code=0.5, **options)
    module.codebook = torch.full((64, 8), 100.0)
    x = data[torch.randint(64, (20, 1, 256))] + 0.01 * torch.randn(20, 1, 256, 8)
    first = module(x[0])[1].unique().numel()
    for batch in x:
        indices = module(batch)[1]
    assert first < 10
    assert indices.unique().numel() > 45


def test_codes_that_were_set_survive_the_next_average():
    module = quantizer()
    codes = 3 + torch.randn(16, 8)
    module.codebook = codes
    module(codes[None])
    torch.testing.assert_close(module.codebook, codes, rtol=1e-4, atol=1e-4)


def test_unused_cosine_codes_keep_their_length():
    module = quantizer(use_cosine_sim=True)
    x = torch.randn(1, 1, 8).expand(1, 4, 8)
    for _ in range(600):
        module(x)
    torch.testing.assert_close(module.codebook.norm(dim=-1), torch.ones(16))


@pytest.mark.parametrize("options", [{}, GRADIENT, {"threshold_ema_dead_code": 2}], ids=str)
def test_a_vector_that_is_not_finite_destroys_nothing(options):
    module = quantizer(**options)
    x = torch.randn(2, 12, 8)
    x[0, 3], x[1, 2] = torch.nan, torch.inf
    module(x)
    assert module.codebook.isfinite().all()


def test_a_number_as_the_weight_of_an_update():
    whole, number = quantizer(), quantizer()
    number.load_state_dict(whole.state_dict())
    x = torch.randn(2, 12, 8)
    whole(x, ema_update_weight=torch.full((16,), 0.5))
    number(x, ema_update_weight=0.5)
    assert torch.equal(whole.codebook, number.codebook)


def test_manual_in_place_update_waits_to_be_asked():
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    module = quantizer(
        **GRADIENT,
        in_place_codebook_optimizer=optimizer,
        manual_in_place_optimizer_update=True,
    )
    before = frozen(module)
    module(torch.randn(2, 12, 8))
    assert torch.equal(module._codebook.embed, before["_codebook.embed"])
    module.update_in_place_optimizer()
    assert not torch.equal(module._codebook.embed, before["_codebook.embed"])
