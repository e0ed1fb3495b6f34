"""ResidualVQ: options that the peer drops on the way to its stages, and combinations of them."""

import pytest
import torch

from vqvae_fast.nn.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.residual_vq import ResidualVQ

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
        ({"beam_size": 2, "cosine_search": True}, "beam search does not go with cosine_search"),
        (
            {"beam_size": 2, "commitment_use_cross_entropy_loss": True},
            "beam search does not go with commitment_use_cross_entropy_loss",
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


def test_a_norm_behind_the_projection_of_each_stage():
    module = rvq(project_per_stage=True, codebook_dim=4, layernorm_after_project_in=True)
    assert isinstance(module.layers[3].project_in[1], torch.nn.LayerNorm)
    module(torch.randn(TOKENS))
