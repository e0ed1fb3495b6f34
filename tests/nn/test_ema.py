import pytest
import torch

from vqvae_fast.nn import CodeMovingAverage, CodeUsage, VectorQuantizer


def nearest(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (rows[:, None] - codes[None]).double().square().sum(-1).argmin(1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_appendix_a1(decay):
    """The article's recursion written out, code by code, over several steps."""
    eps, num_codes, dim = 1e-3, 12, 3
    quantizer = VectorQuantizer(num_codes, dim, learning="ema", decay=decay, eps=eps)
    codes = quantizer.codebook.double().clone()
    size = [1.0] * num_codes
    sums = list(codes.clone())
    for _ in range(6):
        z = torch.randn(2, dim, 3, 4)
        quantizer(z)
        rows = z.permute(0, 2, 3, 1).reshape(-1, dim).double()
        chosen = nearest(rows, codes)
        for i in range(num_codes):
            members = rows[chosen == i]
            size[i] = decay * size[i] + (1 - decay) * len(members)
            sums[i] = decay * sums[i] + (1 - decay) * members.sum(0)
        for i in range(num_codes):
            smoothed = (size[i] + eps) / (sum(size) + num_codes * eps) * sum(size)
            codes[i] = sums[i] / smoothed
        torch.testing.assert_close(quantizer.ema.cluster_size, torch.tensor(size))
        torch.testing.assert_close(quantizer.ema.embed_avg, torch.stack(sums).float())
        torch.testing.assert_close(quantizer.codebook.detach(), codes.float())


def test_state_dict_names():
    state = VectorQuantizer(5, 2, learning="ema").state_dict()
    assert list(state) == ["embedding.weight", "ema.cluster_size", "ema.embed_avg"]


def test_loss_is_commitment_only_and_the_codebook_has_no_gradient():
    quantizer = VectorQuantizer(8, 3, beta=0.7, learning="ema")
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    codes = quantizer.codebook.clone()
    loss, z_q, _, _, indices = quantizer(z)
    # The codes of the search: those of before the write.
    chosen = codes[indices[:, 0]].view(2, 4, 4, 3).permute(0, 3, 1, 2)
    assert not torch.equal(quantizer.codebook, codes)
    torch.testing.assert_close(z_q, chosen)
    torch.testing.assert_close(loss, 0.7 * (z - chosen).square().mean())
    loss.backward()
    torch.testing.assert_close(z.grad, 0.7 * 2 * (z.detach() - chosen) / z.numel())
    assert quantizer.codebook.grad is None
    assert not any(p.requires_grad for p in quantizer.parameters())


def test_vectors_that_are_not_finite_teach_nothing():
    clean = VectorQuantizer(4, 2, learning="ema")
    dirty = VectorQuantizer(4, 2, learning="ema")
    dirty.load_state_dict(clean.state_dict())
    z = torch.randn(1, 2, 2, 3)
    broken = torch.cat([z, torch.full((1, 2, 2, 3), torch.nan)])
    broken[1, :, 0, 0] = torch.inf
    clean(z)
    dirty(broken)
    for name, value in clean.state_dict().items():
        torch.testing.assert_close(dirty.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_stay_float32_in_a_half_module(dtype):
    quantizer = VectorQuantizer(4, 2, learning="ema").to(dtype)
    assert quantizer.codebook.dtype == dtype
    assert quantizer.ema.cluster_size.dtype == torch.float32
    assert quantizer.ema.embed_avg.dtype == torch.float32
    z = torch.randn(1, 2, 4, 4, dtype=dtype)
    for _ in range(300):
        quantizer(z)
    # 16 vectors a batch on the average; in half precision the sum would have stopped short.
    torch.testing.assert_close(
        quantizer.ema.cluster_size.sum().item(), 16 - 12 * 0.99**300, rtol=1e-4, atol=0
    )


def test_averages_follow_to_float64_and_to_another_device():
    averages = CodeMovingAverage(torch.zeros(3, 2), 0.9, 1e-5)
    assert averages.double().embed_avg.dtype == torch.float64
    assert averages.to("meta").embed_avg.device.type == "meta"


def test_usage_alone():
    averages = CodeUsage(3, decay=0.75)  # not 0.5, with which the past weighs as much as the batch
    averages.update(torch.zeros(4, 2), torch.tensor([0, 0, 2, -1]), torch.zeros(3, 2))
    assert averages.cluster_size.tolist() == [1.25, 0.75, 1.0]


def test_reset_survives_the_next_write():
    averages = CodeMovingAverage(torch.zeros(3, 2), 0.9, 1e-5)
    codebook = torch.zeros(3, 2)
    codes = torch.tensor([[9.0, 9.0], [5.0, -5.0], [9.0, 9.0]])
    averages.reset(torch.tensor([False, True, False]), codes, 2.0)
    assert averages.cluster_size.tolist() == [1, 2, 1]
    averages.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), codebook)
    torch.testing.assert_close(codebook, codes * torch.tensor([[0], [1], [0]]), rtol=1e-4, atol=0)
