"""Every autograd Function that quantizes against its formula in plain PyTorch."""

import pytest
import torch

import vqvae_fast
from vqvae_fast.autograd.nearest_with_loss import nearest_with_loss
from vqvae_fast.autograd.residual_nearest_with_loss import residual_nearest_with_loss


class Constant:
    """The stage of a codebook that nothing writes to."""

    def __init__(self, codebook):
        self.codebook = codebook

    def writes(self):
        return False

    def begin(self, residual):
        return self.codebook

    def learn(self, residual, indices):
        pass


def quantize(z, codebook):
    quantized, _, loss, _ = vqvae_fast.quantize(
        z, codebook, commitment_weight=1.0, codebook_weight=1.0
    )
    return quantized, loss


def in_one_piece(z, codebook):
    result = nearest_with_loss(z[None], codebook[None], rotates=False, codes_learn=True)
    return result.quantized[0], result.commitment


def residual(z, codebook):
    result = residual_nearest_with_loss(z, [Constant(codebook)], rotates=False)
    return result.quantized, result.commitments[0]


def straight_through(z, codebook):
    """The nearest code of each vector, and the same with the gradient passed to the vector."""
    q = codebook[(z[:, None] - codebook).square().sum(dim=-1).argmin(dim=1)]
    return q, z + (q - z).detach()


def of_both_sides(z, codebook):
    q, quantized = straight_through(z, codebook)
    return quantized, (z - q).square().mean()


def of_each_side(z, codebook):
    q, quantized = straight_through(z, codebook)
    return quantized, (z - q.detach()).square().mean() + (z.detach() - q).square().mean()


FORMULAS = {quantize: of_each_side, in_one_piece: of_both_sides, residual: of_both_sides}
FUNCTIONS = pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)


@FUNCTIONS
@pytest.mark.parametrize("loss_alone", [False, True])
def test_values_and_gradients(function, loss_alone):
    z, codebook = torch.randn(9, 5).double(), torch.randn(4, 5).double()
    weight = torch.zeros(9, 5) if loss_alone else torch.randn(9, 5)
    results = []
    for call in (function, FORMULAS[function]):
        inputs = [tensor.clone().requires_grad_() for tensor in (z, codebook)]
        quantized, loss = call(*inputs)
        ((quantized * weight).sum() + 3 * loss).backward()
        results.append((quantized.detach(), loss.detach(), *(tensor.grad for tensor in inputs)))
    assert results[0][3].any()
    torch.testing.assert_close(*results)


@FUNCTIONS
def test_second_derivatives(function):
    z, codebook = torch.randn(9, 5).double(), torch.randn(4, 5).double()
    results = []
    for call in (function, FORMULAS[function]):
        inputs = [tensor.clone().requires_grad_() for tensor in (z, codebook)]
        quantized, loss = call(*inputs)
        total = quantized.square().sum() + 3 * loss
        first = torch.autograd.grad(total, inputs, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        results.append(torch.autograd.grad(penalty, inputs))
    torch.testing.assert_close(*results)
