"""What setup.py decides about the CUDA extension; nothing is built here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import vqvae_fast

ROOT = Path(__file__).parents[2]


def setup(**environment):
    """Run setup.py as far as its decisions."""
    clean = {
        k: v for k, v in os.environ.items() if k != "FORCE_CUDA" and not k.startswith("VQVAE_FAST_")
    }
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def names():
    """What setup.py defines."""
    names: dict = {"__file__": str(ROOT / "setup.py")}
    lines = (ROOT / "setup.py").read_text().rpartition("setup(**")[0]
    exec(compile(lines, "setup.py", "exec"), names)
    return names


@pytest.mark.slow
def test_without_a_wish_there_is_no_error():
    assert setup().returncode == 0
    assert setup(FORCE_CUDA="0").returncode == 0
    assert setup(FORCE_CUDA="1", VQVAE_FAST_NO_EXT="1").returncode == 0


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["VQVAE_FAST_NO_EXT", "VQVAE_FAST_REQUIRE_EXT", "FORCE_CUDA"])
def test_a_switch_is_0_or_1(name):
    process = setup(**{name: "true"})
    assert process.returncode != 0
    assert f"{name} must be 0 or 1, got 'true'" in process.stderr


def test_the_version_is_the_package_s():
    assert setup().stdout.split()[-1] == vqvae_fast.__version__


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_what_is_forced_but_impossible_says_why():
    process = setup(FORCE_CUDA="1")
    assert process.returncode != 0
    assert f"FORCE_CUDA=1 is set, but torch {torch.__version__} was built without CUDA" in (
        process.stderr
    )


def test_nvcc_is_looked_for(names, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert "nvcc was not found" in names["why_no_cuda"]()
    assert not names["wants_cuda"]()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    assert names["why_no_cuda"]() is None
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    assert names["wants_cuda"]()
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert not names["wants_cuda"]()


@pytest.mark.parametrize(
    ("cuda", "last"), [("11.8", "9.0+PTX"), ("12.6", "9.0+PTX"), ("13.0", "12.0+PTX")]
)
def test_the_extension(names, monkeypatch, tmp_path, cuda, last):
    """Without a GPU and a list, for all that this version of CUDA knows; else the list is kept."""
    for folder in ("include", "lib64", "lib/x64"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    extension = names["cuda_extension"]()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"
    assert extension.name == "vqvae_fast._cuda"
    sources = {Path(source).name for source in extension.sources}
    assert sources == {"ops.cpp", "module.cpp", "search.cu", "segment_sum.cu", "sort.cu"}
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    names["cuda_extension"]()
    archs = os.environ.pop("TORCH_CUDA_ARCH_LIST").split(";")
    assert archs[0] == "7.5"
    assert archs[-1] == last
