"""Choosing an instruction set, and what is compiled for each."""

import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kernels import INSTRUCTION_SETS, ROOT, build_settings

import vqvae_fast
from vqvae_fast import _native

# The instruction sets that are compiled for this kind of machine.
BUILT_HERE = list(build_settings()["ISA_FLAGS"])
needs_extension = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not there")
    return path


@pytest.mark.parametrize(
    ("target", "has_avx2"),
    [("linux-aarch64", False), ("linux-x86_64", True), ("macosx-11.0-arm64", False)],
)
def test_a_cross_compiler_builds_what_its_target_has(monkeypatch, target, has_avx2):
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", target)
    built = build_settings()["ISA_FLAGS"]
    assert "portable" in built
    assert ("avx2" in built) == has_avx2
    assert ("neon" in built) == (not has_avx2)


@needs_extension
def test_what_there_is():
    assert INSTRUCTION_SETS[-1] == "portable"
    assert set(INSTRUCTION_SETS) <= set(BUILT_HERE)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and platform.machine() == "x86_64":
        flags = set(cpuinfo.read_text().partition("flags")[2].splitlines()[0].split())
        wanted = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= flags
        assert ("avx512" in INSTRUCTION_SETS) == wanted
        assert ("avx512vnni" in INSTRUCTION_SETS) == (wanted and "avx512_vnni" in flags)
        assert ("avx2" in INSTRUCTION_SETS) == ({"avx2", "fma"} <= flags)


@needs_extension
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_chosen_one_serves(restore, isa):
    _native.extension.set_cpu_isa(isa)
    assert _native.extension.cpu_isa() == isa
    assert vqvae_fast.nearest_code(torch.eye(3), torch.eye(3)).indices.tolist() == [0, 1, 2]


@needs_extension
@pytest.mark.parametrize("name", ["nonsense", "", "AVX2", "sse9"])
def test_one_that_is_not_there(restore, name):
    before = _native.extension.cpu_isa()
    message = f"must be one that this machine has ({', '.join(INSTRUCTION_SETS)}), got '{name}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        _native.extension.set_cpu_isa(name)
    assert _native.extension.cpu_isa() == before


@needs_extension
def test_another_may_be_chosen_while_a_search_runs(restore):
    """The codebook is packed for one instruction set: the search must not go on in another."""
    z, codebook = torch.randn(200, 16), torch.randn(3000, 16)
    wanted = vqvae_fast.nearest_code(z, codebook)
    done = threading.Event()

    def choose():
        while not done.is_set():
            for isa in INSTRUCTION_SETS:
                _native.extension.set_cpu_isa(isa)

    chooser = threading.Thread(target=choose)
    chooser.start()
    try:
        results = [vqvae_fast.nearest_code(z, codebook) for _ in range(200)]
    finally:
        done.set()
        chooser.join()
    for result in results:
        assert torch.equal(result.indices, wanted.indices)
        assert torch.equal(result.distances, wanted.distances)


@needs_extension
def test_build_info():
    info = _native.extension.build_info()
    # A wheel serves other versions than the one that it was built with.
    assert tuple(map(int, info["torch"].split("+")[0].split("."))) >= (2, 10, 0)
    assert info["cxx"] >= 202002


# ---- What the compiler made of them --------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize("isa", BUILT_HERE)
def test_a_kernel_file_shares_no_function(tmp_path, isa):
    """A function that the linker may merge could be taken from the file of a wider instruction
    set and run on a machine that lacks it. Unoptimised, every function that is used shows."""
    compiler, nm = tool("g++"), tool("nm")
    settings = build_settings()
    flags = [flag for flag in settings["COMMON_FLAGS"] if not flag.startswith("-O")]
    macros = [f"-D{name}={value}" for name, value in settings["MACROS"]]
    source = ROOT / settings["kernel_source"](isa)
    made = tmp_path / "kernel.o"
    command = [compiler, *flags, "-O0", *macros, *settings["ISA_FLAGS"][isa]]
    subprocess.run([*command, "-c", str(source), "-o", str(made)], check=True)
    listing = subprocess.run([nm, "-C", str(made)], check=True, capture_output=True, text=True)
    symbols = [line.split(maxsplit=2) for line in listing.stdout.splitlines()]
    assert len(symbols) > 20
    shared = {s[2]: s[1] for s in symbols if len(s) == 3 and (s[1].isupper() or s[1] in "uvw")}
    assert f"vqvae_fast::isa::{isa}" in shared
    for symbol, kind in shared.items():
        assert symbol.startswith("vqvae_fast::isa::")
        assert kind in "DR", f"{symbol} is no constant"


# Of each kernel: a word of its mangled names, the accumulators of its tile (one multiply-add each
# and step), that instruction, and how many such loops there are at least.
MAIN_LOOPS = {
    "avx512 float32": ("Avx512Float", 24, r"vfn?m(add|sub)\d+ps .*%zmm", 2),
    "avx512 float64": ("Avx512Double", 24, r"vfn?m(add|sub)\d+pd .*%zmm", 2),
    "avx2 float32": ("Avx2Float", 12, r"vfn?m(add|sub)\d+ps .*%ymm", 2),
    "avx2 float64": ("Avx2Double", 12, r"vfn?m(add|sub)\d+pd .*%ymm", 2),
    "avx512vnni int8": ("score_tiles", 28, r"vpdpbusd .*%zmm", 2),
    "avx512vnni int16": ("score_tiles", 28, r"vpdpwssd .*%zmm", 2),
}
# What takes a register to memory or to another: a spilled or a copied accumulator.
MOVES = re.compile(r"rsp|vmov\w+ +%[xyz]mm\d+,%[xyz]mm\d+")


def inner_loops(instructions):
    """The instructions of each loop that holds no other: (address, text) between a backward jump
    and its target."""
    place = {address: i for i, (address, _) in enumerate(instructions)}
    loops = []
    for i, (address, text) in enumerate(instructions):
        jump = re.match(r"(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= address and int(jump[1], 16) in place:
            loops.append((place[int(jump[1], 16)], i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[text for _, text in instructions[begin : end + 1]] for begin, end in inner]


@needs_extension
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
@pytest.mark.parametrize("kernel", MAIN_LOOPS)
def test_the_inner_loop_stays_in_registers(kernel):
    """An accumulator on the stack costs most of the speed, and compilers put them there easily.
    GCC 12 also copies accumulators before an integer product, if it is asked by an intrinsic."""
    objdump, nm = tool("objdump"), tool("nm")
    library = _native.extension.__file__
    symbols = subprocess.run([nm, "-S", library], check=True, capture_output=True, text=True)
    name, accumulators, multiply_add, loops = MAIN_LOOPS[kernel]
    checked = 0
    for line in symbols.stdout.splitlines():
        fields = line.split()
        if len(fields) != 4 or fields[2] not in "tT" or name not in fields[3]:
            continue
        begin, size = int(fields[0], 16), int(fields[1], 16)
        listing = subprocess.run(
            [
                *(objdump, "-d", "-w", "--no-show-raw-insn"),
                *(f"--start-address={begin}", f"--stop-address={begin + size}", library),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        found = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*)$", listing.stdout, re.MULTILINE)
        for loop in inner_loops([(int(address, 16), text) for address, text in found]):
            if sum(bool(re.match(multiply_add, text)) for text in loop) < accumulators:
                continue
            checked += 1
            moved = [text for text in loop if MOVES.search(text)]
            assert not moved, f"{fields[3]} moves its accumulators"
    if not symbols.stdout.strip():
        pytest.skip("the extension is stripped of its symbols")
    assert checked >= loops
