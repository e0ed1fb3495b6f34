import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
import types

import pytest
import torch

from vqvae_fast import _native, backends, settings
from vqvae_fast.backends import triton as triton_backend
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


@pytest.fixture(autouse=True)
def choice(monkeypatch):
    monkeypatch.setattr(_native, "cuda_extension", None)
    monkeypatch.setattr(_native, "cuda_reason", "there was no nvcc")


def ask(monkeypatch, **environment):
    """As if these variables had been set when the package was imported."""
    monkeypatch.setattr(settings, "current", settings.read(environment))


def triton_is_installed(monkeypatch, installed):
    real = importlib.util.find_spec

    def find_spec(name):
        return (object() if installed else None) if name == "triton" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.9.0")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(triton_backend, "_launcher_problem", lambda: None)


def gpu_is_there(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def available(device):
    return [backend.name for backend in backends.backends(device) if backend.available]


@pytest.mark.usefixtures("extension")
def test_cpu_gets_the_extension_with_its_instruction_set():
    served = backends.chosen("cpu")
    assert (served.name, served.title) == ("cpu", "C++ (avx2)")
    assert served.reason.startswith("selected by VQVAE_FAST_CPU_ISA; ")
    assert "avx512, avx2, portable" in served.reason
    assert available("cpu") == ["cpu", "reference"]


@pytest.mark.usefixtures("extension")
def test_the_best_instruction_set_is_said_to_be_the_fastest(monkeypatch):
    monkeypatch.setattr(_native.extension, "cpu_isa", lambda: "avx512")
    assert backends.chosen("cpu").reason.startswith("the fastest; ")


@pytest.mark.usefixtures("no_extension")
def test_cpu_without_the_extension_gets_the_reference_and_the_reason():
    assert backends.chosen(torch.device("cpu")).name == "reference"
    assert backends.check("cpu", "cpu")[2:] == (False, "there was no compiler")


def test_cuda_without_triton_and_without_nvcc_gets_the_reference(monkeypatch):
    triton_is_installed(monkeypatch, False)
    triton, cuda, cpp, reference = backends.backends("cuda")
    assert triton[2:] == (False, "the package triton is not installed")
    assert cuda[2:] == (False, "there was no nvcc")
    assert not cpp.available
    assert backends.chosen("cuda") == reference


def test_cuda_gets_triton_before_the_extension(monkeypatch):
    triton_is_installed(monkeypatch, True)
    monkeypatch.setattr(_native, "cuda_extension", object())
    assert available("cuda") == ["triton", "cuda", "reference"]
    assert backends.chosen("cuda").name == "triton"
    ask(monkeypatch, VQVAE_FAST_BACKEND="cuda")
    assert backends.chosen("cuda").name == "cuda"


@pytest.mark.usefixtures("extension")
def test_an_old_gpu_gets_the_extension(monkeypatch):
    triton_is_installed(monkeypatch, True)
    monkeypatch.setattr(_native, "cuda_extension", object())
    gpu_is_there(monkeypatch, (7, 5))
    assert backends.chosen("cuda").name == "cuda"
    reason = backends.check("triton", "cuda").reason
    assert reason == (
        "it serves compute capability 8.0 to 12.x and AMD's gfx942, "
        "this GPU is compute capability 7.5"
    )


@pytest.mark.parametrize(
    ("capability", "fits"),
    [((8, 9), True), ((10, 7), True), ((11, 0), True), ((12, 1), True), ((13, 0), False)],
)
def test_a_gpu_of_a_known_family_is_served(monkeypatch, capability, fits):
    triton_is_installed(monkeypatch, True)
    gpu_is_there(monkeypatch, capability)
    assert backends.check("triton", "cuda").available == fits


@pytest.mark.parametrize(
    ("version", "capability", "asked", "said"),
    [
        ("3.6.0", (9, 0), "", "without asynchronous copies, which Triton 3.6.0 does not fence"),
        ("3.7.0", (10, 0), "", "without asynchronous copies, which Triton 3.7.0 does not fence"),
        ("3.6.0", (9, 0), "1", "the answers may be wrong"),
        ("3.7.1", (9, 0), "1", "an exact answer"),
        ("3.6.0", (8, 0), "1", "an exact answer"),
        ("3.6.0", (12, 0), "", "an exact answer"),
    ],
)
def test_copies_without_a_fence_are_told(monkeypatch, version, capability, asked, said):
    triton_is_installed(monkeypatch, True)
    gpu_is_there(monkeypatch, capability)
    ask(monkeypatch, VQVAE_FAST_UNFENCED_COPIES=asked)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    triton = backends.check("triton", "cuda")
    assert triton.available
    assert said in triton.reason
    assert said != "an exact answer" or triton.reason.endswith(said)


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("3.3.1", False),
        ("3.4.0", False),
        ("3.5.0", True),
        ("3.5.1+gitbfeb0668", True),
        ("3.10.0", True),
        ("4.0.0rc1", True),
    ],
)
@pytest.mark.parametrize("by", ["package", "module"])
def test_triton_before_3_5_serves_nobody(monkeypatch, version, fits, by):
    triton_is_installed(monkeypatch, True)
    monkeypatch.setattr(_native, "cuda_extension", object())

    def package_version(name):
        if by == "module":
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", package_version)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=version))
    assert backends.chosen("cuda").name == ("triton" if fits else "cuda")
    if not fits:
        reason = backends.check("triton", "cuda").reason
        assert reason == f"it needs Triton 3.5, this is {version}"


@pytest.mark.parametrize(
    ("arch", "fits"),
    [
        ("gfx942:sramecc+:xnack-", True),
        ("gfx950", False),  # in no published model of matrix units
        ("gfx90a:sramecc+", False),
        ("gfx1100", False),
    ],
)
def test_of_amds_gpus_one_is_served(monkeypatch, arch, fits):
    triton_is_installed(monkeypatch, True)
    properties = types.SimpleNamespace(gcnArchName=arch)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    triton = backends.check("triton", "cuda")
    assert triton.available == fits
    assert fits or triton.reason.endswith(f"this GPU is {arch.split(':')[0]}")


@pytest.mark.parametrize(
    ("cc", "programs", "fits"),
    [
        (None, ["gcc"], True),
        (None, ["clang"], True),
        (None, [], False),
        ("gcc-14", ["gcc-14"], True),
        ("gcc-14", ["gcc"], False),
    ],
)
def test_triton_without_a_c_compiler_serves_nobody(monkeypatch, cc, programs, fits):
    triton_is_installed(monkeypatch, True)
    monkeypatch.delenv("CC", raising=False)
    if cc:
        monkeypatch.setenv("CC", cc)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)
    triton = backends.check("triton", "cuda")
    assert triton.available == fits
    assert fits or "C compiler" in triton.reason


@pytest.mark.parametrize("headers", [True, False])
def test_triton_without_pythons_headers_leaves_its_place_to_cuda(
    monkeypatch, headers, tmp_path, capfd
):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))  # nothing was built before
    monkeypatch.setattr(_native, "cuda_extension", object())
    if not headers:
        paths = sysconfig.get_paths() | {"include": str(tmp_path / "empty")}
        monkeypatch.setattr(sysconfig, "get_paths", lambda *arguments, **named: paths)
    triton_backend._launcher_problem.cache_clear()
    try:
        triton = backends.check("triton", "cuda")
        assert triton.available == headers
        assert headers or "takes a C compiler and Python.h" in triton.reason
        assert backends.chosen("cuda").name == ("triton" if headers else "cuda")
    finally:
        triton_backend._launcher_problem.cache_clear()
    assert ("Python.h" in capfd.readouterr().err) == (not headers)  # the compiler's own words


def test_a_broken_installation_of_triton_leaves_its_place_to_cuda(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(_native, "cuda_extension", object())
    monkeypatch.setitem(sys.modules, "triton.runtime.build", None)
    triton_backend._launcher_problem.cache_clear()
    try:
        triton = backends.check("triton", "cuda")
        assert not triton.available
        assert "Triton cannot be imported: import of triton.runtime.build halted" in triton.reason
        assert backends.chosen("cuda").name == "cuda"
    finally:
        triton_backend._launcher_problem.cache_clear()


@pytest.mark.usefixtures("extension")
def test_a_request_is_about_its_own_devices(monkeypatch):
    ask(monkeypatch, VQVAE_FAST_BACKEND="cuda")
    assert backends.chosen("cpu").name == "cpu"
    ask(monkeypatch, VQVAE_FAST_BACKEND="reference")
    assert backends.chosen("cuda").name == "reference"


def test_a_request_that_cannot_be_met_says_why(monkeypatch):
    ask(monkeypatch, VQVAE_FAST_BACKEND="cuda")
    with pytest.raises(RuntimeError, match="VQVAE_FAST_BACKEND=cuda, but there was no nvcc"):
        backends.chosen("cuda")


@pytest.mark.usefixtures("no_extension")
@pytest.mark.parametrize(
    ("backend", "isa", "request_"),
    [
        ("cpu", "", "VQVAE_FAST_BACKEND=cpu"),
        *((name, "avx2", "VQVAE_FAST_CPU_ISA=avx2") for name in ("", "cpu", "cuda", "reference")),
    ],
)
def test_the_reference_does_not_stand_in_for_the_extension(monkeypatch, backend, isa, request_):
    ask(monkeypatch, VQVAE_FAST_BACKEND=backend, VQVAE_FAST_CPU_ISA=isa)
    with pytest.raises(RuntimeError, match=f"^{request_}.*, but there was no compiler$"):
        backends.chosen("cpu")


def test_the_interpreter_without_triton_cannot_be_met_on_the_cpu(monkeypatch):
    triton_is_installed(monkeypatch, False)
    ask(monkeypatch, VQVAE_FAST_BACKEND="triton", TRITON_INTERPRET="true")
    with pytest.raises(RuntimeError, match="but the package triton is not installed"):
        backends.chosen("cpu")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"VQVAE_FAST_BACKEND": "fastest"},
            "VQVAE_FAST_BACKEND must be auto or one of cpu, cuda, reference, triton, got 'fastest'",
        ),
        ({"VQVAE_FAST_NO_EXT": "true"}, "VQVAE_FAST_NO_EXT must be 0 or 1, got 'true'"),
        (
            {"VQVAE_FAST_UNFENCED_COPIES": "yes"},
            "VQVAE_FAST_UNFENCED_COPIES must be 0 or 1, got 'yes'",
        ),
    ],
)
def test_a_value_without_a_meaning(monkeypatch, variables, sentence):
    ask(monkeypatch, **variables)
    for device in ("cpu", "cuda", "meta"):
        with pytest.raises(ValueError, match=sentence):
            backends.chosen(device)


def test_what_the_environment_may_say():
    read = settings.read
    assert read({}) == settings.Settings()
    assert read(dict.fromkeys(("VQVAE_FAST_BACKEND", "VQVAE_FAST_NO_EXT"), "")) == read({})
    assert read({"VQVAE_FAST_BACKEND": "auto", "VQVAE_FAST_NO_EXT": "0"}) == read({})
    assert read({"VQVAE_FAST_NO_EXT": "1"}) == settings.Settings(no_extension=True)
    assert read({"VQVAE_FAST_UNFENCED_COPIES": "1"}) == settings.Settings(unfenced_copies=True)
    for backend in backends.backends("cpu"):
        assert read({"VQVAE_FAST_BACKEND": backend.name}).backend == backend.name
    for word in ("1", "true", "ON", "y"):
        assert read({"VQVAE_FAST_BACKEND": "triton", "TRITON_INTERPRET": word}).triton_interprets
    assert not read({"VQVAE_FAST_BACKEND": "triton", "TRITON_INTERPRET": "0"}).triton_interprets
    assert not read({"TRITON_INTERPRET": "1"}).triton_interprets


def test_other_devices_get_the_reference():
    assert available("meta") == ["reference"]


@pytest.mark.parametrize("state", ["extension", "no_extension"])
def test_info_marks_the_kernel_that_serves(state, request, capsys, monkeypatch):
    triton_is_installed(monkeypatch, False)
    request.getfixturevalue(state)
    with pytest.raises(SystemExit) as exit_:
        main(["info"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    served = [line for line in out.splitlines() if line.startswith(" -> ")]
    title = "C++ (avx2)" if state == "extension" else "PyTorch reference"
    assert served[0].startswith(f" -> {title}: ")
    assert served[1].startswith(" -> PyTorch reference: ")
    assert ("there was no compiler" in out) == (state == "no_extension")
    assert ("somecc 1.2" in out) == (state == "extension")


@pytest.mark.usefixtures("extension")
def test_info_tells_a_request_that_cannot_be_met(monkeypatch, capsys):
    triton_is_installed(monkeypatch, False)
    ask(monkeypatch, VQVAE_FAST_BACKEND="cuda")
    with pytest.raises(SystemExit) as exit_:
        main(["info"])
    assert exit_.value.code == 0
    assert "VQVAE_FAST_BACKEND=cuda, but there was no nvcc" in capsys.readouterr().out
