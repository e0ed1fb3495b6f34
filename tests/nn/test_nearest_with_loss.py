"""The default layer in one piece beside its parts one after the other."""

import pytest
import torch

from vqvae_fast.autograd.estimators import rotate_to, straight_through
from vqvae_fast.autograd.nearest_with_loss import nearest_with_loss
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.choosing import Best, Wanted
from vqvae_fast.nn.steps.losses import commitment_loss

NEAREST = Wanted(None, 0.0, None)


def in_parts(rows, codes, rotates, codes_learn):
    chosen = Best(unit_length=False).choose(rows, codes, NEAREST)
    loss = commitment_loss(rows, chosen if codes_learn else chosen.detached(), None)
    estimator = rotate_to if rotates else straight_through
    return estimator(rows, chosen.quantized), chosen.indices, loss


def in_one(rows, codes, rotates, codes_learn):
    return nearest_with_loss(rows, codes, rotates=rotates, codes_learn=codes_learn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2, 12, 5), (3, 2, 12, 5), (1, 0, 12, 5)])
@pytest.mark.parametrize("codes_learn", [True, False])
@pytest.mark.parametrize("rotates", [True, False])
def test_values_and_gradients(rotates, codes_learn, shape, dtype):
    rows, codes = torch.randn(shape, dtype=dtype), torch.randn(shape[0], 7, 5, dtype=dtype)
    weight = torch.randn(shape, dtype=dtype)
    results = []
    for function in (in_parts, in_one):
        z, e = rows.clone().requires_grad_(), codes.clone().requires_grad_()
        quantized, indices, loss = function(z, e, rotates, codes_learn)
        ((quantized * weight).sum() + 3 * loss).backward()
        assert codes_learn or e.grad is None or not e.grad.any()
        learned = e.grad if codes_learn else torch.zeros(())
        results.append((quantized, indices, loss, z.grad, learned))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_the_result_may_be_written_to(rotation_trick):
    module = VectorQuantize(dim=8, codebook_size=16, rotation_trick=rotation_trick)
    x = torch.randn(2, 12, 8, requires_grad=True)
    quantized, _, loss = module(x)
    kept = torch.autograd.grad(quantized.sum() + loss, x, retain_graph=True)
    quantized.mul_(1.0).add_(5)
    torch.testing.assert_close(torch.autograd.grad(quantized.sum() + loss, x), kept)


@pytest.mark.parametrize("options", [{}, {"learnable_codebook": True, "ema_update": False}])
def test_vectors_without_a_gradient(options):
    """They still teach the codes."""
    module = VectorQuantize(dim=8, codebook_size=16, **options)
    before = module.codebook.detach().clone()
    quantized, indices, loss = module(torch.randn(2, 12, 8))
    assert torch.equal(quantized, before[indices])
    (quantized.sum() + loss).backward()
    if options:
        assert module._codebook.embed.grad.any()
    else:
        assert not torch.equal(module.codebook, before)
