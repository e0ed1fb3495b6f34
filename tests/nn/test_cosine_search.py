"""VectorQuantize(cosine_search=True): DAC's lookup, loss and gradient."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize

LEARNS = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False}


def test_step_of_dac():
    module = VectorQuantize(6, 16, codebook_dim=4, cosine_search=True, **LEARNS)
    with torch.no_grad():
        module._codebook.embed.mul_(torch.rand(16, 1) * 5)
    x = torch.randn(2, 9, 6, requires_grad=True)
    quantized, indices, loss = module(x)
    (quantized.square().sum() + loss).backward()
    parameters = list(module.parameters())
    found = [x.grad, *(p.grad for p in parameters)]
    x.grad, _ = None, module.zero_grad()

    z, codes = module.project_in(x), module.codebook
    chosen = (F.normalize(z, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
    assert torch.equal(indices, chosen)
    z_q = codes[chosen]
    expected = module.project_out(z + (z_q - z).detach())
    # One term for both: the gradient of the commitment and of the codebook loss, weighed alike.
    expected_loss = F.mse_loss(z, z_q)
    torch.testing.assert_close(quantized, expected)
    torch.testing.assert_close(loss, expected_loss)
    (expected.square().sum() + expected_loss).backward()
    for ours, theirs in zip(found, [x.grad, *(p.grad for p in parameters)], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_codes_keep_their_length():
    module = VectorQuantize(4, 16, cosine_search=True).eval()
    codes = torch.randn(16, 4) * 3
    module.codebook = codes
    x = torch.randn(2, 9, 4)
    quantized, indices, _ = module(x)
    assert torch.equal(quantized, codes[indices])
    assert torch.equal(module.get_output_from_indices(indices), quantized)
    assert torch.equal(module(x * 100)[1], indices)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cosine_sim": True},
        {"stochastic_sample_codes": True},
        {"commitment_use_cross_entropy_loss": True},
        {"codebook_diversity_loss_weight": 1.0},
    ],
)
def test_what_goes_by_distances_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"cosine_search and {name} exclude each other"):
        VectorQuantize(4, 16, cosine_search=True, **options)


@pytest.mark.parametrize(
    "call",
    [
        {"topk": 2},
        {"indices": torch.zeros(2, 9, dtype=torch.int64)},
        {"codebook_transform_fn": lambda codes: codes},
    ],
)
def test_calls_that_go_by_distances_are_refused(call):
    module = VectorQuantize(4, 16, cosine_search=True)
    with pytest.raises(ValueError, match="cosine_search"):
        module(torch.randn(2, 9, 4), **call)
