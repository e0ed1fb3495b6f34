"""VectorQuantize in models, and of vectors, of other dtypes than float32."""

import copy

import pytest
import torch
from beside_the_peer import name, pair

from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize

GRADIENT = {"learnable_codebook": True, "ema_update": False}
OPTIONS = [
    {"codebook_dim": 4},
    {"codebook_dim": 4, "heads": 2, "use_cosine_sim": True, "separate_codebook_per_head": True},
    {"codebook_dim": 4, **GRADIENT},
    {"codebook_dim": 4, "vq_bridge": torch.nn.Linear(4, 4)},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_a_model_decodes_in_its_dtype(options, dtype):
    """Averaged codes stay in float32, and the projection behind them does not."""
    options = options | ({"dim": 6} if options.get("heads") else {"dim": 8})
    module = VectorQuantize(codebook_size=16, **copy.deepcopy(options)).to(dtype).eval()
    quantized, indices, _ = module(torch.randn(2, 12, options["dim"], dtype=dtype))
    decoded = module.get_output_from_indices(indices)
    assert decoded.dtype == dtype
    torch.testing.assert_close(decoded, quantized)


@pytest.mark.parametrize("options", [{}, GRADIENT, {"use_cosine_sim": True}], ids=name)
def test_float64_vectors(options):
    """As the peer, but searched in the precision that they have."""
    theirs, ours = pair(VectorQuantize, {"dim": 8, "codebook_size": 16, **options})
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    for training in (False, True):
        expected, got = theirs.train(training)(x), ours.train(training)(x)
        assert got[0].dtype == expected[0].dtype == torch.float64
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[2].float(), expected[2].float(), rtol=1e-5, atol=1e-6)


def test_an_empty_batch_has_no_loss():
    module = VectorQuantize(8, 16, threshold_ema_dead_code=1)
    quantized, indices, loss = module(torch.randn(2, 0, 8))
    assert quantized.shape == (2, 0, 8)
    assert indices.shape == (2, 0)
    assert loss == 0
    assert all(value.isfinite().all() for value in module.state_dict().values())
