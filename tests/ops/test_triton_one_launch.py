"""The Triton search of little work, in one launch."""

import pytest
import torch
from oracle import check

from vqvae_fast import settings

if not settings.current.triton_interprets:
    pytest.skip("needs a process of Triton's interpreter", allow_module_level=True)

from vqvae_fast.backends.triton import search
from vqvae_fast.backends.triton.forms import direct_form

pytestmark = pytest.mark.interpreted


def direct_launch(z, codebook):
    """The grid of a search in one launch, and its constants."""
    shapes = (z.shape, z.stride(), z.dtype, codebook.shape, codebook.stride(), None)
    plan, *_ = search.planned(*shapes, torch.float16, z.device, "direct", False)
    (launch,) = plan.launches
    return launch.grid, launch.constants


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("rows", "codes"), [(3, 5000), (40, 1000), (16, 1300)])
def test_programs_share_the_codes_of_few_rows(monkeypatch, rows, codes, heads):
    """Each copy of a code lies in another part: the first of all copies must win."""
    monkeypatch.setattr(search, "forced_form", "direct")
    monkeypatch.setattr(search, "multiprocessors", lambda device: 24)
    z, codebook = torch.randn(heads, rows, 23), torch.randn(heads, codes, 23)
    codebook[:, codes // 2 :] = codebook[:, : codes - codes // 2].clone()
    z[:, -1] = codebook[:, codes // 2 + 1]
    z[:, 1] = float("nan")
    (_, parts, books), constants = direct_launch(z, codebook)
    assert constants["SHARED"]
    assert parts > 1
    assert books == heads
    quantized, indices, distances = search.quantize(z, codebook)
    check((indices, distances), z, codebook)
    for book in range(heads):
        assert torch.equal(quantized[book], codebook[book][indices[book]])


def test_more_codes_than_the_tile_numbers_of_one_part(monkeypatch):
    monkeypatch.setattr(search, "forced_form", "direct")
    monkeypatch.setattr(search, "multiprocessors", lambda device: 1)
    codes = 2 * 256 * 128 + 100
    z, codebook = torch.randn(5, 3), torch.randn(codes, 3)
    (_, parts, _), constants = direct_launch(z, codebook)
    assert parts * 256 * constants["BLOCK_CODES"] >= codes
    check(search.nearest_code(z, codebook), z, codebook)


def test_the_model_takes_one_launch_for_little_work():
    def launches_of(rows, codes, dim):
        form = direct_form(rows, codes, dim, 1, (True, True), 132, None)
        return None if form is None else form.parts

    assert launches_of(2048, 1024, 64) == 1
    assert launches_of(16, 8192, 64) > 1
    assert launches_of(256, 8192, 64) > 1
    assert launches_of(65536, 1024, 64) is None
    assert launches_of(2048, 65536, 64) is None
    assert launches_of(16, 1024, 129) is None


@pytest.mark.parametrize(
    ("dim", "aligned", "fits"),
    [
        (128, (True, True), True),
        (128, (True, False), False),
        (128, (False, False), True),
        (64, (True, False), True),
        (129, (True, True), False),
    ],
)
def test_what_one_launch_can_hold(dim, aligned, fits):
    assert (direct_form(5, 7, dim, 1, aligned, 132, "direct") is not None) == fits
