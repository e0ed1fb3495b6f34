"""The benchmark of the instruction sets: what it compares, and that its record is whole."""

import json
from typing import NamedTuple

import pytest
import torch
from kernels import FILTERING, INSTRUCTION_SETS

from benchmarks import instruction_sets
from vqvae_fast import _native
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peak import kernels

needs_extension = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")


class Machine:
    """An extension on a machine with these instruction sets."""

    def __init__(self, *available):
        self.available_cpu_isas = lambda: list(available)


@pytest.mark.parametrize(
    ("available", "wanted"),
    [
        (("portable",), ("portable",)),
        (("avx2", "portable"), ("avx2-float32", "avx2")),
        (("avxvnni", "avx2", "portable"), ("avx2-float32", "avx2", "avxvnni")),
        (
            ("avx512vnni", "avx512", "avx2", "portable"),
            ("avx2-float32", "avx512-float32", "avx2", "avx512", "avx512vnni"),
        ),
    ],
)
def test_each_set_is_timed_with_its_filter_and_without(available, wanted):
    assert instruction_sets.contenders(Machine(*available)) == wanted


@pytest.mark.parametrize("isa", [*FILTERING, "neon", "neondot", "neoni8mm", "portable"])
def test_the_peak_of_float32_belongs_to_the_set_that_multiplies(isa):
    names = {kernel.isa for kernel in kernels.KERNELS["float32"]}
    assert kernels.float_set(isa) in names
    assert kernels.float_set(f"{isa}-float32") == kernels.float_set(isa)


@pytest.mark.parametrize("isa", [isa for isa in FILTERING if isa != "avx512amx"])
def test_each_set_of_vectors_has_peaks_in_integers(isa):
    assert isa in {kernel.isa for kernel in kernels.KERNELS["int8"]}
    assert isa in {kernel.isa for kernel in kernels.KERNELS["int16"]}


@needs_extension
def test_a_quick_run(tmp_path):
    chosen = _native.extension.cpu_isa()
    out = tmp_path / "sets.json"
    instruction_sets.main(
        ["--quick", "--threads", "1", "--shapes", "64,1031,32", "--json", str(out)]
    )
    record = json.loads(out.read_text())
    assert _native.extension.cpu_isa() == chosen
    assert [entry["source"] for entry in record["results"]] == ["Gaussian", "stretched"]
    for entry in record["results"]:
        assert list(entry["sets"]) == record["sets"]
        for isa, line in entry["sets"].items():
            assert line["seconds"] > 0
            assert line["times_faster"] > 0
            assert (line["settled_rows"] >= 0) == (isa in FILTERING)
    assert out.with_suffix(".md").read_text().count("64, 1031, 32") == 2


@needs_extension
def test_other_bits_end_it(monkeypatch):
    numbers = iter(range(9))

    def other_each_time(z, codebook):
        return Found(torch.zeros(len(z)), torch.full((len(z),), next(numbers)))

    monkeypatch.setattr(instruction_sets, "nearest_code", other_each_time)
    with pytest.raises(AssertionError, match="portable"):
        instruction_sets.compare(gaussian(Shape(16, 64, 8)), ("portable",), 1)


class Found(NamedTuple):
    """What a search returns."""

    indices: torch.Tensor
    distances: torch.Tensor
