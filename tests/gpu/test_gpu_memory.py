"""Never N x K, and offsets beyond 2^31 elements."""

import pytest
import torch
from oracle import check
from test_offsets import FAR, test_search, test_segment_sum  # noqa: F401

import vqvae_fast

MIB, GIB = 1 << 20, 1 << 30


def need(gibibytes):
    """Skips where the device has not so much memory free."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < gibibytes * GIB:
        pytest.skip(f"it needs {gibibytes} GiB of the device, {free / GIB:.0f} GiB are free")


@pytest.fixture
def spread(cuda):
    """[4, FAR] bfloat16 for the tests of tests/ops."""
    need(12)
    return torch.empty(4, FAR, dtype=torch.bfloat16)


def peak_beside_results(call):
    call()  # what the first call alone allocates is not the op's
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    kept = sum(t.untyped_storage().nbytes() for t in results)
    return torch.cuda.max_memory_allocated() - before - kept


@pytest.mark.parametrize("data", ["normal", "all equal"])
@pytest.mark.parametrize(
    ("rows", "codes", "dim"), [(65_536, 65_536, 32), (256, 1 << 20, 64), (1 << 20, 512, 64)]
)
def test_a_search_takes_a_packed_codebook_and_a_few_numbers_a_row(cuda, data, rows, codes, dim):
    """Of the first shape N x K would be 16 GiB. 64 MiB: the candidates of a slab of rows."""
    need(4)
    make = torch.randn if data == "normal" else torch.ones
    z, codebook = make(rows, dim), make(codes, dim)
    packed = 4 * (codes + 256) * (dim + 8)
    bound = packed + 64 * (rows + codes) + 64 * MIB
    used = peak_beside_results(lambda: torch.ops.vqvae_fast.quantize(z, codebook))
    assert used <= bound, f"{used / MIB:.0f} MiB, at most {bound / MIB:.0f}"


def test_a_training_step_saves_nothing_of_n_x_k(cuda):
    need(4)
    rows, codes, dim = 65_536, 65_536, 32
    z = torch.randn(rows, dim, requires_grad=True)
    codebook = torch.randn(codes, dim, requires_grad=True)

    def step():
        got = vqvae_fast.quantize(z, codebook)
        return torch.autograd.grad(got.loss + got.quantized.sum(), (z, codebook))

    # Beside the search's: its results, gradients in float64, and the sort's two copies of labels.
    bound = 4 * 8 * (rows + codes) * (dim + 8) + 64 * (rows + codes) + 64 * MIB
    assert peak_beside_results(step) <= bound < rows * codes


def test_more_than_2_to_the_31_elements_of_z(cuda):
    need(24)
    rows, dim = (1 << 25) + 3, 65
    z, codebook = torch.zeros(rows, dim, dtype=torch.bfloat16), torch.randn(7, dim).bfloat16()
    assert z.numel() > 1 << 31
    ends = torch.cat([torch.arange(500), torch.arange(rows - 500, rows)])
    z[ends] = torch.randn(1000, dim).bfloat16()
    quantized, indices, distances = torch.ops.vqvae_fast.quantize(z, codebook)
    check((indices[ends], distances[ends]), z[ends], codebook)
    assert torch.equal(quantized[ends], codebook[indices[ends]])
    middle = slice(rows // 2, rows // 2 + 1000)
    check((indices[middle], distances[middle]), z[middle], codebook)
    del quantized
    sums, counts = torch.ops.vqvae_fast.segment_sum(z, indices, 7)
    assert torch.equal(counts, torch.bincount(indices, minlength=7).float())
    wanted = torch.zeros(7, dim, dtype=torch.float64)
    wanted.index_add_(0, indices[ends], z[ends].double())
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-6, atol=1e-6)


def test_more_than_2_to_the_31_elements_of_the_codebook(cuda):
    need(40)
    codes, dim = (1 << 25) + 3, 65
    codebook = torch.zeros(codes, dim, dtype=torch.bfloat16)
    assert codebook.numel() > 1 << 31
    last = codes - 1 - 17 * torch.arange(64)
    codebook[last] = 5 + torch.randn(64, dim).bfloat16()
    z = codebook[last].clone()
    quantized, indices, distances = torch.ops.vqvae_fast.quantize(z, codebook)
    assert torch.equal(indices, last)
    assert not distances.any()
    assert torch.equal(quantized, z)
    sums, counts = torch.ops.vqvae_fast.segment_sum(z, indices, codes)
    assert torch.equal(sums[last], z.float())
    assert counts.sum() == 64
