"""No compilation per shape: of every kernel one, whatever N and K, for a D and a layout."""

from collections import Counter
from unittest import mock

import pytest

pytest.importorskip("triton")

import torch
import triton

from benchmarks.gpu_check.offline import TARGETS, compiled_for
from vqvae_fast.backends.triton import ops as kernels

# Odd, even, multiples of 16, and 1, which Triton makes a constant where it may.
SIZES = [(1000, 500), (1001, 501), (1024, 512), (1000, 512), (1024, 501), (1, 1), (17, 2)]


def rows(n, k, dim):
    return torch.zeros(n, dim), torch.zeros(k, dim)


def maps(n, k, dim):
    return torch.zeros(3, dim, 2 * n, 1).movedim(1, -1), torch.zeros(k, dim)


def transposed(n, k, dim):
    return torch.zeros(n, dim), torch.zeros(dim, 2 * k).T


def books(n, k, dim):
    return torch.zeros(3, n, dim), torch.zeros(3, k, dim)


def one_book(n, k, dim):
    return torch.zeros(1, n, dim), torch.zeros(1, k, dim)


def search(z, codebook):
    with mock.patch("vqvae_fast.backends.triton.search.forced_form", "filter"):
        kernels.nearest_code(z, codebook)


def direct(z, codebook):
    with mock.patch("vqvae_fast.backends.triton.search.forced_form", "direct"):
        kernels.quantize(z, codebook)


def exact(z, codebook):
    kernels.nearest_code(z.double(), codebook.double())


def quantize(z, codebook):
    with mock.patch("vqvae_fast.backends.triton.search.forced_form", "filter"):
        kernels.quantize(z, codebook)


def packed(z, codebook):
    """The search that packs, the packing beforehand, and the search after it: the same kernels."""
    quantize(z, codebook)
    with mock.patch("vqvae_fast.backends.triton.search.forced_form", "filter"):
        kernels.quantize_packed(z, codebook, kernels.pack_codebook(codebook))


def packed_stages(z, codebook):
    codebooks = codebook.expand(3, *codebook.shape)
    kernels.residual_nearest_code(z, codebooks)
    kernels.residual_nearest_packed_code(z, codebooks, kernels.pack_codebook(codebooks))


def residual(z, codebook):
    kernels.residual_nearest_code(z, codebook.expand(3, *codebook.shape))


def sums(z, codebook):
    indices = torch.zeros(z.shape[:-1], dtype=torch.int64)
    kernels.segment_sum(z, indices, len(codebook))
    kernels.quantize_backward(z, torch.zeros(()), z, codebook, indices, 0.25, 1.0)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("call", "layouts", "dim"),
    [
        (search, [rows, one_book], 3),
        (quantize, [rows, one_book, books], 64),  # elements of all books are aligned alike
        (search, [books], 6),
        (search, [maps], 32),
        (search, [transposed], 16),
        (packed, [rows, one_book], 3),
        (packed, [rows, books], 64),
        (packed, [rows], 200),
        (packed_stages, [rows], 16),
        (direct, [rows, one_book], 3),
        (direct, [rows, books], 64),
        (exact, [rows], 3),
        (residual, [rows], 6),
        (residual, [maps], 16),
        (sums, [rows], 3),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_kernel_is_compiled_once(call, layouts, dim):
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    gpu, _ = TARGETS["sm_90"]
    with compiled_for(gpu) as launches:
        for layout in layouts:
            for n, k in SIZES:
                call(*layout(n, k, dim))
    counts = Counter(
        (launch.name, tuple(sorted(launch.constants.items(), key=str))) for launch in launches
    )
    assert counts
    assert set(counts.values()) == {1}
    if call is not sums:  # those go through passes, whose constants differ
        assert len(counts) == len({name for name, _ in counts})
