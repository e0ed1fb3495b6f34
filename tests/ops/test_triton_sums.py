"""What is Triton's own in the sums: wrong indices, the borders of chunks, the width of labels."""

import importlib

import pytest
import torch
from oracle import quantize_gradients, segment_sums

from vqvae_fast import settings

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(
        not settings.current.triton_interprets,
        reason="Triton's interpreter needs VQVAE_FAST_BACKEND=triton and TRITON_INTERPRET=1",
    ),
]


@pytest.fixture
def sums_and_counts():
    """The op as a GPU runs it: it does not look at the indices before."""
    return importlib.import_module("vqvae_fast.backends.triton.segment_sum").sums_and_counts


def check(result, src, indices, num_segments):
    sums, _, counts = segment_sums(src, indices, num_segments)
    assert torch.equal(result[1], counts.to(result[1].dtype))
    torch.testing.assert_close(result[0], sums.to(result[0].dtype), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("bad", [4, 5, 2**31, 2**40, 2**63 - 1, -1, -(2**63)])
def test_an_index_that_is_no_segment_is_left_out(sums_and_counts, bad):
    src, indices = torch.randn(200, 3), torch.randint(0, 4, (200,))
    indices[::7] = bad
    got = sums_and_counts(src, indices, 4)
    check(got, src, indices.masked_fill(indices == bad, -1), 4)


@pytest.mark.parametrize("bad", [7, 2**40, -1, -(2**63)])
def test_a_row_without_a_code_has_no_loss(bad):
    z, codebook, grad = torch.randn(90, 5), torch.randn(7, 5), torch.randn(90, 5)
    indices = torch.randint(0, 7, (90,))
    has_code = torch.arange(90) % 4 != 0
    arguments = (torch.tensor(90.0), z, codebook, indices, 0.5, 1.0)
    wanted_z, _ = quantize_gradients(grad, *arguments)
    of_others = torch.where(has_code[:, None], z, codebook[indices])  # their errors are zero
    _, wanted_codebook = quantize_gradients(
        grad, torch.tensor(90.0), of_others, codebook, indices, 0.5, 1.0
    )
    indices = torch.where(has_code, indices, bad)
    arguments = (torch.tensor(90.0), z, codebook, indices, 0.5, 1.0)
    got = torch.ops.vqvae_fast.quantize_backward(grad, *arguments)
    torch.testing.assert_close(got[0], torch.where(has_code[:, None], wanted_z.float(), grad))
    torch.testing.assert_close(got[1], wanted_codebook.float())


@pytest.mark.parametrize("length", [1, 31, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049])
def test_runs_that_meet_the_borders_of_chunks(sums_and_counts, length):
    """Runs of one length, among them those that begin and end where chunks and their pieces do."""
    indices = torch.arange(4200) // length
    src, segments = torch.randn(4200, 2), int(indices[-1]) + 1
    check(sums_and_counts(src, indices, segments), src, indices, segments)
    before = torch.cat([torch.full((13,), -5), indices])  # and all of them a little later
    src = torch.randn(4213, 2)
    check(sums_and_counts(src, before, segments), src, before, segments)


@pytest.mark.parametrize("segments", [32766, 32767, 32768, 70000])
def test_the_width_of_the_labels(sums_and_counts, segments):
    src, indices = torch.randn(150, 2), torch.randint(-1, segments, (150,))
    indices[:4] = torch.tensor([segments - 1, 0, 2**15 - 2, segments])
    wanted = indices.masked_fill(indices == segments, -1)
    check(sums_and_counts(src, indices, segments), src, wanted, segments)


def test_the_order_of_the_rows_does_not_depend_on_chance(sums_and_counts):
    src, indices = torch.randn(3000, 3), torch.randint(0, 9, (3000,))
    sums = sums_and_counts(src, indices, 9)[0]
    order = torch.argsort(indices, stable=True)  # another order of segments, the same of rows
    assert torch.equal(sums_and_counts(src[order], indices[order], 9)[0], sums)
