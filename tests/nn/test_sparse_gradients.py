"""Codebook gradients as sparse tensors: those of the chosen codes, and nothing else."""

import pytest
import torch

import vqvae_fast
from vqvae_fast.nn import VectorQuantizer


def gradients(z, codebook, sparse, **options):
    z, codebook = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    quantized, _, loss, _ = vqvae_fast.quantize(z, codebook, sparse=sparse, **options)
    upstream = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward([quantized, loss], [upstream.to(z.dtype), torch.tensor(0.7)])
    return z.grad, codebook.grad


@pytest.mark.parametrize(
    ("z", "codebook", "options"),
    [
        ((50, 6), (300, 6), {}),
        ((4, 9, 6), (20, 6), {"commitment_weight": 3.0, "codebook_weight": 0.1}),
        ((3, 50, 6), (3, 40, 6), {}),
        ((2, 6, 3, 5), (70, 6), {"channel_first": True}),
    ],
)
def test_they_are_the_dense_ones(z, codebook, options):
    torch.manual_seed(0)
    z, codebook = torch.randn(z), torch.randn(codebook)
    wanted_z, wanted = gradients(z, codebook, False, **options)
    found_z, found = gradients(z, codebook, True, **options)
    assert found.is_sparse
    assert found.shape == codebook.shape
    chosen = wanted.abs().sum(-1) > 0
    assert found._nnz() == int(chosen.sum()) < codebook[..., 0].numel()
    assert torch.equal(found.to_dense(), wanted)
    assert torch.equal(found_z, wanted_z)


def test_an_empty_batch_has_an_empty_gradient():
    _, found = gradients(torch.zeros(0, 4), torch.randn(7, 4), True)
    assert found._nnz() == 0
    assert found.shape == (7, 4)


@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_a_step_moves_the_chosen_codes_alone(threshold):
    torch.manual_seed(0)
    vq = VectorQuantizer(500, 4, sparse=True, dead_code_threshold=threshold)
    optimizer = torch.optim.SparseAdam(vq.parameters(), lr=0.1)
    loss, *_, indices = vq(torch.randn(2, 4, 3, 3))
    before = vq.codebook.detach().clone()  # dead codes have moved
    loss.backward()
    optimizer.step()
    moved = (vq.codebook != before).any(1).nonzero()[:, 0]
    assert moved.tolist() == sorted(set(indices.flatten().tolist()))


def test_training_with_sgd_is_that_of_dense_gradients():
    def trained(sparse):
        torch.manual_seed(0)
        vq = VectorQuantizer(64, 4, sparse=sparse)
        optimizer = torch.optim.SGD(vq.parameters(), lr=10.0)
        for _ in range(5):
            optimizer.zero_grad()
            vq(torch.randn(2, 4, 5, 5))[0].backward()
            optimizer.step()
        return vq.codebook.detach()

    torch.testing.assert_close(trained(True), trained(False))


def test_moving_averages_have_no_gradient_to_be_sparse():
    with pytest.raises(ValueError, match="sparse gradients need learning='gradient', got 'ema'"):
        VectorQuantizer(8, 4, learning="ema", sparse=True)
