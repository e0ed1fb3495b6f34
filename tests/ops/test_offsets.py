"""Offsets beyond 2^31 elements: views that spread a few rows over memory that is never touched."""

import mmap
import sys

import pytest
import torch

pytestmark = pytest.mark.interpreted

FAR = (1 << 30) + 8  # the third row begins past 2^31 elements


@pytest.fixture(scope="module")
def spread():
    """[4, FAR] bfloat16, 8 GiB of address space of which only the touched pages exist."""
    if sys.platform != "linux":
        pytest.skip("only Linux is known to give address space without reserving memory")
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13
    try:
        memory = mmap.mmap(-1, 4 * FAR * 2, flags=mmap.MAP_PRIVATE | no_reserve)
    except OSError as error:
        pytest.skip(f"no address space of 8 GiB: {error}")
    return torch.frombuffer(memory, dtype=torch.bfloat16).view(4, FAR)


@pytest.mark.parametrize("dims", ["rows apart", "elements apart"])
def test_search(implementation, spread, dims):
    near_z, near_codes = torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    expected = implementation.quantize(near_z, near_codes)
    if dims == "rows apart":
        z, codebook = spread[:, :3], spread[:, 100:103]
    else:
        near_z, near_codes = torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16()
        expected = implementation.quantize(near_z, near_codes)
        z, codebook = spread[:, :3].T, spread[:, 100:103].T
    z.copy_(near_z)
    codebook.copy_(near_codes)
    for part, wanted in zip(implementation.quantize(z, codebook), expected, strict=True):
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("dims", ["rows apart", "elements apart"])
def test_segment_sum(implementation, spread, dims):
    src = spread[:, :3] if dims == "rows apart" else spread[:, :3].T
    src.copy_(torch.randn(src.shape))
    indices = torch.arange(len(src)) % 2
    sums, counts = implementation.segment_sum(src, indices, 2)
    wanted_sums, wanted_counts = implementation.segment_sum(src.clone(), indices, 2)
    assert sums.abs().sum() > 0
    assert torch.equal(sums, wanted_sums)
    assert torch.equal(counts, wanted_counts)
