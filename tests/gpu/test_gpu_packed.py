"""A codebook that is packed beforehand: the same bits, no kernel that packs, and nothing waits."""

import pytest
import torch
from calls import same

import vqvae_fast

# With the starts in the product and without, in pieces, with codes that are shared out.
SHAPES = [(1, 5000, 16), (129, 4097, 8), (1000, 1025, 256), (2049, 513, 300), (70_001, 131, 64)]
SPREADS = [1.0, 1e4, 1e-20]
SEARCHES = [vqvae_fast.nearest_code, vqvae_fast.quantize]


def pair(rows, codes, dim, dtype):
    return torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)


@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_the_bits_are_those_of_the_codebook_itself(dtype, rows, codes, dim):
    for spread in SPREADS if dtype == torch.float32 else [1.0]:
        z, codebook = pair(rows, codes, dim, dtype)
        z *= spread
        codebook[codes // 3] = torch.nan
        packed = vqvae_fast.pack(codebook)
        for function in SEARCHES:
            assert same(function(z, packed), function(z, codebook))


@pytest.mark.parametrize("dim", [8, 16, 64, 128, 200])
def test_stages_and_books(dtype, dim):
    codebooks = torch.randn(4, 1000, dim).to(dtype)
    packed = vqvae_fast.pack(codebooks)
    z = torch.randn(4, 700, dim).to(dtype)
    for number in (None, 2):
        found = vqvae_fast.residual_nearest_code(z, packed, num_quantizers=number)
        assert same(found, vqvae_fast.residual_nearest_code(z, codebooks[:number]))
    assert same(vqvae_fast.nearest_code(z, packed), vqvae_fast.nearest_code(z, codebooks))


def test_triton_packs_and_others_say_that_they_do_not(cuda, served_by):
    codebook = torch.randn(1024, 64)
    packed = vqvae_fast.pack(codebook)
    assert (packed.packed.numel() > 0) == (served_by == "triton")
    assert packed.packed.numel() < 0.6 * codebook.nbytes


@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_a_graph_is_replayed_with_new_vectors(cuda, rows, codes, dim):
    z, codebook = pair(rows, codes, dim, torch.float32)
    packed = vqvae_fast.pack(codebook)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # compiles, and fills torch's pools
            vqvae_fast.quantize(z, packed)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = vqvae_fast.quantize(z, packed)
    for spread in SPREADS:
        new_z = torch.randn(rows, dim) * spread
        z.copy_(new_z)
        graph.replay()
        assert same(results, vqvae_fast.quantize(new_z, codebook))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", ["nearest_code", "quantize", "residual_nearest_code"])
def test_nothing_waits_for_the_device(cuda, name):
    function = getattr(vqvae_fast, name)
    codebook = torch.randn(3, 1024, 64) if "residual" in name else torch.randn(1024, 64)
    z, packed = torch.randn(3000, 64), vqvae_fast.pack(codebook)
    wanted = function(z, packed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = function(z, packed)
        vqvae_fast.pack(codebook)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(got, wanted)
