"""opcheck, torch.compile in one graph, export: the tests of tests/ops, on the device."""

import pytest
import torch
from test_dispatcher import (  # noqa: F401
    dynamo_warns,
    layer,
    run,
    test_compiled_in_one_graph,
    test_compiled_searches_and_sums,
    test_compiled_with_dynamic_shapes_compiles_once,
    test_exported,
    test_inference_mode,
    test_opcheck_of_quantize_backward,
    test_opcheck_of_searches,
    test_opcheck_of_segment_sum,
)

import vqvae_fast


@dynamo_warns
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(cuda, mode):
    """reduce-overhead puts everything into CUDA graphs: forward and backward, new inputs each time.

    No tensor of one call is looked at after the next: its memory is the graph's.
    """
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    codebook = torch.randn(300, 16)
    for _ in range(4):
        z = torch.randn(1000, 16)
        wanted = run(layer, z, codebook)
        torch.compiler.cudagraph_mark_step_begin()
        for mine, theirs in zip(run(compiled, z, codebook), wanted, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_of_the_device_searches_in_float32(cuda, narrow):
    z, codebook = torch.randn(40, 5).to(narrow), torch.randn(60, 5)
    wanted = vqvae_fast.quantize(z.float(), codebook)
    with torch.autocast("cuda", dtype=narrow):
        got = vqvae_fast.quantize(z, codebook)
        assert (z @ torch.randn(5, 5)).dtype == narrow  # autocast is at work
    assert torch.equal(got.indices, wanted.indices)
    assert torch.equal(got.quantized, wanted.quantized)


def test_tensors_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    z, codebook = torch.randn(40, 5, device="cuda:1"), torch.randn(60, 5, device="cuda:1")
    with torch.cuda.device(0):
        got = vqvae_fast.nearest_code(z, codebook)
        wanted = vqvae_fast.nearest_code(z, codebook, backend="reference")
    assert torch.equal(got.indices, wanted.indices)
