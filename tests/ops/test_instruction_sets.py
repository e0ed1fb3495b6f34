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
from setuptools import Distribution
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler

import vqvae_fast
from vqvae_fast import _native, backends

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


@pytest.mark.parametrize("unknown", ["-mavxvnni", "{vex}"])
def test_an_older_compiler_costs_one_instruction_set(monkeypatch, tmp_path, capsys, unknown):
    """Whether the compiler does not know a flag or its assembler does not know an instruction."""
    if "avxvnni" not in BUILT_HERE:
        pytest.skip("this kind of machine has no flag that older compilers lack")
    script = tmp_path / "old"
    script.write_text(
        '#!/bin/sh\nfor word in "$@"; do\n'
        f'  [ "$word" = "{unknown}" ] && exit 1\n'
        f'  case "$word" in *.cpp) grep -qFe "{unknown}" "$word" && exit 1;; esac\n'
        f'done\nexec {tool("g++")} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.chdir(ROOT)
    arguments = build_settings()["extension_arguments"]()
    command = arguments["cmdclass"]["build_ext"](Distribution())
    command.compiler = new_compiler()
    customize_compiler(command.compiler)
    extension = arguments["ext_modules"][0]
    known = command._known_sets(extension)
    assert known == [isa for isa in BUILT_HERE if isa != "avxvnni"]
    assert dict(extension.define_macros)["VQVAE_FAST_ISAS"] == ",".join(known)
    said = capsys.readouterr().err
    assert "the kernels for avxvnni were not built" in said
    assert unknown in said


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
        assert ("avxvnni" in INSTRUCTION_SETS) == ({"avx2", "fma", "avx_vnni"} <= flags)
        # Linux may list the flags and still deny the process its tiles.
        assert "avx512amx" not in INSTRUCTION_SETS or {"amx_tile", "amx_int8"} <= flags


def test_what_was_not_measured_is_not_chosen(monkeypatch):
    class Extension:
        chosen, available = "avx512vnni", ["avx512vnni", "avx512amx", "portable"]

        def cpu_isa(self):
            return self.chosen

        def available_cpu_isas(self):
            return self.available

    monkeypatch.setattr(_native, "extension", Extension())
    check = backends.cpu.backend.check
    note = "; avx512amx has not been measured yet"
    assert check(torch.device("cpu")).reason.endswith(f"overrides the choice){note}")
    monkeypatch.setattr(Extension, "chosen", "avx512amx")
    assert check(torch.device("cpu")).reason.endswith(f"avx512amx, portable{note}")
    monkeypatch.setattr(Extension, "available", ["avx512amx", "avx512vnni", "portable"])
    assert note not in check(torch.device("cpu")).reason


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


# A line for each kernel has a pattern of its mangled names, the number of accumulators of its tile
# (a step has one multiply-add for each), that instruction, and the least number of such loops.
MAIN_LOOPS = {
    "avx512 float32": ("Avx512Float", 24, r"vfn?m(add|sub)\d+ps .*%zmm", 2),
    "avx512 float64": ("Avx512Double", 24, r"vfn?m(add|sub)\d+pd .*%zmm", 2),
    "avx2 float32": ("Avx2Float", 12, r"vfn?m(add|sub)\d+ps .*%ymm", 2),
    "avx2 float64": ("Avx2Double", 12, r"vfn?m(add|sub)\d+pd .*%ymm", 2),
    "avx512vnni int8": (r"_4Vnni.*score_tiles", 28, r"vpdpbusd .*%zmm", 2),
    "avx512vnni int16": (r"_4Vnni.*score_tiles", 28, r"vpdpwssd .*%zmm", 2),
    "avx512 int8": (r"Avx512.*Pairwise.*score_tiles", 24, r"vpmaddubsw .*%zmm", 2),
    "avx512 int16": (r"Avx512.*Pairwise.*score_tiles", 24, r"vpmaddwd .*%zmm", 2),
    "avxvnni int8": (r"AvxVnni.*score_tiles", 12, r"\{vex\} vpdpbusd .*%ymm", 2),
    "avxvnni int16": (r"AvxVnni.*score_tiles", 12, r"\{vex\} vpdpwssd .*%ymm", 2),
    "avx2 int8": (r"Avx2.*Pairwise.*score_tiles", 12, r"vpmaddubsw .*%ymm", 2),
    "avx2 int16": (r"Avx2.*Pairwise.*score_tiles", 12, r"vpmaddwd .*%ymm", 2),
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


def functions(name):
    """The functions of the extension with this word in their mangled names, as instructions."""
    objdump, nm = tool("objdump"), tool("nm")
    library = _native.extension.__file__
    symbols = subprocess.run([nm, "-S", library], check=True, capture_output=True, text=True)
    if not symbols.stdout.strip():
        pytest.skip("the extension is stripped of its symbols")
    for line in symbols.stdout.splitlines():
        fields = line.split()
        if len(fields) != 4 or fields[2] not in "tT" or not re.search(name, fields[3]):
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
        yield fields[3], [(int(address, 16), text) for address, text in found]


reads_x86 = [
    needs_extension,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
]


@pytest.mark.parametrize("kernel", [pytest.param(k, marks=reads_x86) for k in MAIN_LOOPS])
def test_the_inner_loop_stays_in_registers(kernel):
    """An accumulator on the stack costs most of the speed, and compilers put them there easily.
    GCC 12 also copies accumulators before an integer product, if it is asked by an intrinsic."""
    name, accumulators, multiply_add, loops = MAIN_LOOPS[kernel]
    checked = 0
    for symbol, instructions in functions(name):
        for loop in inner_loops(instructions):
            if sum(bool(re.match(multiply_add, text)) for text in loop) < accumulators:
                continue
            checked += 1
            moved = [text for text in loop if MOVES.search(text)]
            assert not moved, f"{symbol} moves its accumulators"
    assert checked >= loops


@pytest.mark.parametrize("wide", [pytest.param(w, marks=reads_x86) for w in (False, True)])
def test_the_matrix_unit_s_scores_stay_in_registers(wide):
    """The scores of the matrix unit leave it through the stack, so all that the stack gets of
    vectors is counted: what scores begin with. The best scores are written once."""
    for steps in (1, 2, 3):
        ((_, instructions),) = functions(f"score_in_turnILi{steps}ELb{int(wide)}E")
        count = {
            what: sum(bool(re.match(what, text)) for _, text in instructions)
            for what in (
                *("tdpbssd", "tileloadd", "tilestored", "vcvtps2dq", "vpdpwssd"),
                *(r"vmov\w+ +%zmm\d+,.*\(", r"vmov\w+ +%zmm\d+,%zmm"),
                r"v\w+ +-?\w*\(%r[sb]p\),.*%zmm",
            )
        }
        # Two of four pairs are multiplied ahead of the loop, too.
        assert count["tdpbssd"] == (2 * 4 + 2 * 2) * steps
        # As many loads: a tile of codes for each product. Each pair starts with two more, and the
        # rows are loaded ahead of the loop and in it.
        assert count["tileloadd"] == count["tdpbssd"] + 2 * (4 + 2) + 2 * steps
        assert count["tilestored"] == 2 * 4
        assert count["vpdpwssd"] == (4 * 2 * 16 * 4 if wide else 0)
        assert count[r"vmov\w+ +%zmm\d+,.*\("] == 16 + count["vcvtps2dq"]
        assert count[r"vmov\w+ +%zmm\d+,%zmm"] <= 2 * wide
        # The compiler does not know what the unit stores: it must read each score once, and anew.
        assert count[r"v\w+ +-?\w*\(%r[sb]p\),.*%zmm"] == 4 * 2 * 16
    ((_, instructions),) = functions(f"score_squaresILb{int(wide)}E")
    squares = [
        loop for loop in inner_loops(instructions) if sum("tdpbssd" in text for text in loop) == 4
    ]
    assert squares
    for loop in squares:
        assert sum("tileloadd" in text for text in loop) == 4
        assert not any("mm" in text for text in loop if not re.match("tdp|tile", text))
