"""A CPU instruction set is added with one file in csrc/cpu/isa: nothing else is edited."""

import shutil
import subprocess
from pathlib import Path

import pytest
from kernels import ROOT, build_settings

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not there")
HERE = Path(__file__).parent
DRIVERS = ("search", "packed_codebook", "int8_filter/filter", "codes/distinct", "dispatch")
DRIVERS += ("top_codes/measured", "top_codes/search")


@pytest.fixture
def tree(tmp_path):
    """A copy of what is built, with made_up.cpp among the instruction sets."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(HERE / "made_up.cpp", tmp_path / "csrc" / "cpu" / "isa")
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    shutil.copy(HERE / "attack.cpp", tmp_path / "tests" / "ops")
    return tmp_path


def test_setup_finds_the_file_and_its_flags(tree):
    settings = build_settings(tree)
    assert settings["ISA_FLAGS"]["made_up"] == ["-DMADE_UP_FLAG=1"]
    assert "made_up" in dict(settings["MACROS"])["VQVAE_FAST_ISAS"].split(",")
    assert "made_up" not in build_settings()["ISA_FLAGS"]


def test_each_machine_has_its_own_instruction_sets():
    of_machine = build_settings()["instruction_sets"]
    assert list(of_machine("x86_64")) == [
        *("avx2", "avx512", "avx512amx", "avx512vnni", "avxvnni", "portable")
    ]
    assert "-mavx512vnni" in of_machine("x86_64")["avx512vnni"]
    assert of_machine("riscv64") == {"portable": []}


@pytest.mark.slow
@needs_compiler
def test_it_serves_and_returns_the_bits_of_the_portable_one(tree):
    """The attack compares all instruction sets of a build and counts what their filters settle."""
    settings = build_settings(tree)
    flags = {isa: settings["ISA_FLAGS"][isa] for isa in ("portable", "made_up")}
    common = [flag for flag in settings["COMMON_FLAGS"] if flag not in ("-O3", "-fopenmp")]
    common += ["-O1", f"-DVQVAE_FAST_ISAS={','.join(flags)}", "-DVQVAE_FAST_TEST_SMALL_AS_LARGE"]
    sources = {tree / settings["kernel_source"](isa): own for isa, own in flags.items()}
    sources |= {tree / "csrc" / "cpu" / f"{name}.cpp": [] for name in DRIVERS}
    sources |= {tree / "tests" / "ops" / "attack.cpp": []}
    objects = []
    for source, own in sources.items():
        objects.append(tree / f"{source.parent.name}_{source.stem}.o")
        subprocess.run([COMPILER, *common, *own, "-c", source, "-o", objects[-1]], check=True)
    program = tree / "attack"
    subprocess.run([COMPILER, *objects, "-o", program], check=True)
    process = subprocess.run([program, "100", "1"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    words = process.stdout.split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert counts["made_up.settled"] > 500
    assert counts["made_up.settled_wide"] > 20
