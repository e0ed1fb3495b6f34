"""Versions of Triton and families of GPUs that the kernels know, and what they choose for them."""

from pathlib import Path

import pytest
import torch

from benchmarks.matrix_unit import UNITS
from vqvae_fast import settings
from vqvae_fast.backends.triton import matrix_units
from vqvae_fast.backends.triton import version as triton_version


@pytest.mark.parametrize(
    ("version", "least", "reached"),
    [
        ("3.5.0", (3, 5), True),
        ("3.5", (3, 5, 0), True),
        ("3.5.1+gitbfeb0668", (3, 5, 1), True),
        ("3.7.0", (3, 7, 1), False),
        ("3.7.0+rocm7.1.25", (3, 7, 1), False),  # the numbers of ROCm are not Triton's
        ("3.10.0", (3, 7, 1), True),
        ("4.0.0rc1", (3, 7, 1), True),
        ("3.7", (3, 7, 1), False),
        ("unknown", (3, 5), False),
    ],
)
def test_versions_are_compared_number_by_number(version, least, reached):
    assert triton_version.at_least(version, least) == reached


def test_the_oldest_version_is_the_one_that_is_asked_for_and_checked():
    root = Path(__file__).parents[2]
    oldest = ".".join(map(str, triton_version.OLDEST))
    assert f'triton = ["triton>={oldest}"]' in (root / "pyproject.toml").read_text()
    assert f"triton=={oldest}.0\n" in (root / "Makefile").read_text()


@pytest.mark.parametrize("major", [8, 9, 10, 11, 12])
@pytest.mark.parametrize("version", ["3.5.0", "3.6.0", "3.7.0", "3.7.1", "3.9.0"])
def test_the_fence_is_missed_where_units_read_shared_memory(version, major):
    missed = triton_version.leaves_out_fence(version, major)
    assert missed == (major in (9, 10, 11) and version < "3.7.1")


@pytest.mark.parametrize(("major", "name"), [(8, "ampere"), (9, "hopper"), (12, "hopper")])
def test_no_unit_loses_more_than_the_bound_allows(major, name):
    unit = matrix_units.of_nvidia(major)
    model = UNITS[name]
    # Units of 2^-24: every step cuts off its products and the accumulator, and then the sum.
    step = (model.products + 1) * 2.0 ** (24 - model.fraction_bits) + 2
    assert unit == (name, 16 / model.products * step)
    assert unit.lost <= matrix_units.ALLOWED


def test_amds_unit_loses_no_more_than_the_bound_allows():
    assert matrix_units.of_amd("gfx942").lost <= matrix_units.ALLOWED


@pytest.mark.parametrize("arch", ["gfx90a", "gfx950", "gfx1100"])
def test_other_units_of_amd_are_not_known(arch):
    assert matrix_units.of_amd(arch) is None


@pytest.mark.parametrize("major", [7, 13])
def test_other_families_of_nvidia_are_not_known(major):
    assert matrix_units.of_nvidia(major) is None


@pytest.mark.parametrize(
    ("version", "target", "asked", "asynchronous"),
    [
        ("3.6.0", "sm_90", False, False),
        ("3.6.0", "sm_100", False, False),
        ("3.6.0", "sm_90", True, True),
        ("3.6.0", "sm_80", False, True),
        ("3.6.0", "sm_120", False, True),
        ("3.6.0", "gfx942", False, True),
        ("3.7.1", "sm_90", False, True),
    ],
)
def test_without_the_fence_nothing_is_copied_asynchronously(
    monkeypatch, version, target, asked, asynchronous
):
    triton = pytest.importorskip("triton")
    from benchmarks.gpu_check.offline import TARGETS, compiled_for
    from vqvae_fast.backends.triton.configurations import configuration, residual_configuration

    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter copies nothing asynchronously")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(settings, "current", settings.Settings(unfenced_copies=asked))
    with compiled_for(TARGETS[target][0]):
        chosen = [configuration(dim, torch.float16) for dim in (8, 64, 128, 1000)]
        chosen += [residual_configuration(dim) for dim in (8, 64, 128)]
    assert all((config.num_stages > 1) == asynchronous for config in chosen)
