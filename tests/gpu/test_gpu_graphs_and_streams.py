"""CUDA graphs, streams, other devices: nothing waits, and everything is ordered."""

import pytest
import torch
from calls import CALLS, same

import vqvae_fast

# The codes of few rows are shared out; many rows take another path, and the segment sum's sort too.
SHAPES = [(1, 5000, 16), (33, 70_000, 64), (5000, 1025, 64), (70_001, 300, 8)]
SPREADS = [1.0, 1e4, 1e-20]  # with rows that a bound cannot settle, too
# Of the mode that makes waiting an error: it does not see all of it. Graphs see the rest.
prototype = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
PARAMETERS = pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)


@PARAMETERS
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_is_replayed_with_new_inputs(cuda, name, rows, codes, dim):
    z, codebook = torch.randn(rows, dim), torch.randn(codes, dim)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # compiles, and fills torch's pools
            CALLS[name](z, codebook)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = CALLS[name](z, codebook)
    for spread in SPREADS:
        new_z, new_codebook = torch.randn(rows, dim) * spread, torch.randn(codes, dim)
        new_codebook[: codes // 2] *= spread
        new_codebook[codes // 3] = torch.nan
        z.copy_(new_z)
        codebook.copy_(new_codebook)
        graph.replay()
        assert same(results, CALLS[name](new_z, new_codebook))


@prototype
@PARAMETERS
@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(cuda, name, rows, codes, dim):
    z, codebook = torch.randn(rows, dim), torch.randn(codes, dim)
    wanted = CALLS[name](z, codebook)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = CALLS[name](z, codebook)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(got, wanted)


@prototype
def test_backward_waits_for_nothing(cuda):
    z = torch.randn(4, 32, 16, 16, requires_grad=True)
    codebook = torch.randn(1024, 32, requires_grad=True)
    upstream = torch.randn_like(z)

    def step():
        got = vqvae_fast.quantize(z, codebook, channel_first=True)
        return torch.autograd.grad([got.quantized, got.loss], [z, codebook], [upstream, one])

    one = torch.ones(())
    wanted = step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_another_stream_is_used_where_it_is_current(cuda, name):
    """The inputs are written late on that stream: who ran elsewhere would read the old ones."""
    z, codebook = torch.zeros(3000, 32), torch.zeros(2000, 32)
    new_z, new_codebook = torch.randn(3000, 32), torch.randn(2000, 32)
    wanted = CALLS[name](new_z, new_codebook)
    CALLS[name](z, codebook)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some 30 ms
        z.copy_(new_z)
        codebook.copy_(new_codebook)
        got = CALLS[name](z, codebook)
    stream.synchronize()
    assert same(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_a_device_that_is_not_current(cuda, name):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    z, codebook = torch.randn(3000, 32), torch.randn(2000, 32)
    wanted = CALLS[name](z, codebook)
    other = torch.device("cuda", 1 if cuda.index == 0 else 0)
    got = CALLS[name](z.to(other), codebook.to(other))
    assert all(part.device == other for part in got)
    assert torch.cuda.current_device() == cuda.index
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.to(cuda), theirs)
