import types

import pytest
import torch

from vqvae_fast import _native, backends
from vqvae_fast.cli import main


@pytest.fixture
def extension(monkeypatch):
    module = types.SimpleNamespace(
        cpu_isa=lambda: "avx2",
        available_cpu_isas=lambda: ["avx512", "avx2", "portable"],
        build_info=lambda: {"compiler": "somecc 1.2"},
    )
    monkeypatch.setattr(_native, "extension", module)
    monkeypatch.setattr(_native, "reason", "")


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "reason", "there was no compiler")


@pytest.mark.usefixtures("extension")
def test_cpu_gets_the_extension_with_its_instruction_set():
    first, second = backends.backends("cpu")
    assert first == backends.chosen("cpu")
    assert first.name == "C++ (avx2)"
    assert first.reason.startswith("selected by VQVAE_FAST_CPU_ISA; ")
    assert "avx512, avx2, portable" in first.reason
    assert second.available


@pytest.mark.usefixtures("extension")
def test_the_best_instruction_set_is_said_to_be_the_fastest(monkeypatch):
    monkeypatch.setattr(_native.extension, "cpu_isa", lambda: "avx512")
    assert backends.chosen("cpu").reason.startswith("the fastest; ")


@pytest.mark.usefixtures("no_extension")
def test_cpu_without_the_extension_gets_the_reference_and_the_reason():
    first, second = backends.backends(torch.device("cpu"))
    assert (first.available, first.reason) == (False, "there was no compiler")
    assert backends.chosen("cpu") == second


@pytest.mark.usefixtures("extension")
def test_cuda_gets_the_reference_and_is_told_so():
    served = backends.chosen("cuda")
    assert served.name == "PyTorch reference"
    assert "cuda" in served.reason


@pytest.mark.parametrize("state", ["extension", "no_extension"])
def test_info_marks_the_kernel_that_serves(state, request, capsys):
    request.getfixturevalue(state)
    with pytest.raises(SystemExit) as exit_:
        main(["info"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    served = [line for line in out.splitlines() if line.startswith(" -> ")]
    name = "C++ (avx2)" if state == "extension" else "PyTorch reference"
    assert served[0].startswith(f" -> {name}: ")
    assert served[1].startswith(" -> PyTorch reference: ")
    assert ("there was no compiler" in out) == (state == "no_extension")
    assert ("somecc 1.2" in out) == (state == "extension")
