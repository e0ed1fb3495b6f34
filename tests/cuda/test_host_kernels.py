"""What the contract's tests (tests/ops) do not ask of the CUDA kernels, on their host stand-in."""

import ctypes

import host_kernels
import pytest
import torch

pytestmark = pytest.mark.skipif(
    host_kernels.why_not() is not None, reason=str(host_kernels.why_not())
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def backwards():
    """Calls a function with the blocks of every grid run from the last to the first."""

    def run(function, *arguments):
        host_kernels.library().host_blocks_backwards(1)
        try:
            return function(*arguments)
        finally:
            host_kernels.library().host_blocks_backwards(0)

    return run


def unsettled(z, codebook):
    """How many rows the bound left to be measured against every code."""
    host_kernels.nearest_code(z, codebook)
    return ctypes.c_int64.in_dll(host_kernels.library(), "host_unsettled_rows").value


def with_code(codebook, value):
    codebook[len(codebook) // 2] = value
    return codebook


# Few of these rows may stay unsettled. A search that measures every code is exact, too, so a test
# of results alone would not notice that the filter rules nothing out.
SETTLED = {
    "normal": lambda: (torch.randn(1000, 16), torch.randn(1500, 16)),
    "wide": lambda: (torch.randn(1000, 300), torch.randn(300, 300)),
    "few rows, codes divided": lambda: (torch.randn(10, 16), torch.randn(1500, 16)),
    "mean 1000": lambda: (1000 + torch.randn(1000, 16), 1000 + torch.randn(1500, 16)),
    "1e-15 wide": lambda: (1e-15 * torch.randn(1000, 16), 1e-15 * torch.randn(1500, 16)),
    "1e15 wide": lambda: (1e15 * torch.randn(1000, 16), 1e15 * torch.randn(1500, 16)),
    "a dead code at 1e4": lambda: (torch.randn(1000, 16), with_code(torch.randn(1500, 16), 1e4)),
    "a dead code at 1e30": lambda: (torch.randn(1000, 16), with_code(torch.randn(1500, 16), 1e30)),
    "a code of NaN": lambda: (torch.randn(1000, 16), with_code(torch.randn(1500, 16), torch.nan)),
    "a code of infinity": lambda: (
        torch.randn(1000, 16),
        with_code(torch.randn(1500, 16), torch.inf),
    ),
    "a third of the codes dead at 0": lambda: (
        10 + torch.randn(1000, 16),
        (10 + torch.randn(1500, 16)) * (torch.arange(1500) % 3 > 0)[:, None],
    ),
    "bfloat16": lambda: (torch.randn(1000, 16).bfloat16(), torch.randn(1500, 16).bfloat16()),
    "float16": lambda: (torch.randn(1000, 16).half(), torch.randn(1500, 16).half()),
}


@pytest.mark.parametrize("case", SETTLED)
def test_the_bound_settles_ordinary_rows(case):
    z, codebook = SETTLED[case]()
    assert unsettled(z, codebook) <= 0.02 * len(z)


def test_rows_that_the_bound_may_not_settle():
    z, codebook = torch.randn(1000, 16), torch.randn(1500, 16)
    z[3, 2], z[70, 0], z[999, 15] = torch.nan, torch.inf, 1e38
    assert 3 <= unsettled(z, codebook) <= 20
    assert unsettled(torch.randn(50, 4), torch.zeros(300, 4)) == 50  # all equally near
    assert unsettled(torch.randn(50, 4).double(), torch.randn(9, 4).double()) == -1


@pytest.mark.parametrize("rows", [5, 700])
def test_the_order_of_blocks_leaves_no_trace(backwards, rows):
    z, codebook = torch.randn(rows, 9).round(), torch.randn(900, 9).round()
    first = host_kernels.quantize(z, codebook)
    again = backwards(host_kernels.quantize, z, codebook)
    assert unsettled(z, codebook) > 2  # or there was nothing to put in order
    for part, other in zip(first, again, strict=True):
        assert torch.equal(part, other)
    indices = torch.randint(-1, 40, (rows,))
    sums = host_kernels.segment_sum(z, indices, 40)
    assert torch.equal(sums[0], backwards(host_kernels.segment_sum, z, indices, 40)[0])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 129, 4096, 4097, 8300])
@pytest.mark.parametrize("segments", [1, 2, 67])
def test_segments_across_chunks_of_rows(rows, segments):
    """Chunks are 64 rows; 64 * 64 / 2 rows fill a chunk of pieces."""
    src = torch.randint(-9, 10, (rows, 2)).float()  # sums of integers are without rounding
    indices = (torch.randint(-1, segments**2, (rows,)) - 1) % segments
    sums, counts = host_kernels.segment_sum(src, indices, segments)
    wanted = torch.zeros(segments, 2).index_add_(0, indices, src)
    assert torch.equal(sums, wanted)
    assert torch.equal(counts, torch.bincount(indices, minlength=segments).float())


def test_rounding_to_16_bits():
    """grad_z is grad_quantized where the loss has no gradient: rounded as torch rounds. Halfway
    cases, subnormals and what overflows come from the middle between neighbours."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        every = bits.view(dtype)
        every = every[every.isfinite()]
        z, book = torch.zeros(len(every), 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        chosen = torch.zeros(len(every), dtype=torch.int64)
        # z - e = every, times c: a float32 that is no 16-bit number, added to zero.
        factor = 0.5 + 2.0**-12
        grad_z, _ = host_kernels.quantize_backward(
            z, torch.tensor(0.5 * len(every)), every[:, None], book, chosen, factor, 1.0
        )
        assert torch.equal(grad_z[:, 0], (every.float() * factor).to(dtype))
        grad_z, _ = host_kernels.quantize_backward(
            z, torch.tensor(0.5 * len(every)), every[:, None], book, chosen, 1.5, 1.0
        )
        assert torch.equal(grad_z[:, 0], (every.float() * 1.5).to(dtype))


@pytest.mark.parametrize("power", range(56, 64))
def test_a_code_too_far_to_be_packed_is_the_nearest(power):
    """The nine codes that give centre and scale are near 0, and unusable. Of the others, for one
    of these powers, one is packed, one is beyond what is packed, and the latter is the nearer."""
    codebook = torch.randn(100, 2)
    codebook[:, 0] = torch.nan
    codebook[5] = torch.tensor([-0.9 * 2.0**power, 0])
    codebook[6] = torch.tensor([1.1 * 2.0**power, 0])
    z = torch.tensor([[0.9 * 2.0 ** (power - 2), 0], [-0.9 * 2.0 ** (power - 2), 0]])
    assert host_kernels.nearest_code(z, codebook)[0].tolist() == [6, 5]
