"""The instruction sets of 64-bit Arm: their machine code, how they are chosen, and their bits.

All is cross-compiled, and an emulator runs it as processors with more and with fewer instructions.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kernels import ROOT, build_settings, compiled_once
from test_attack import CROSS_COMPILER, EMULATOR, attack, build
from test_instruction_sets import inner_loops

OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
NM = shutil.which("aarch64-linux-gnu-nm")
CLANG = shutil.which("clang++")
TARGET = "linux-aarch64"
needs_compiler = pytest.mark.skipif(
    CROSS_COMPILER is None or OBJDUMP is None, reason="aarch64-linux-gnu-g++ is not there"
)
needs_emulator = pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is not there")
# The instruction sets of processors that the emulator knows. The best set comes first.
PROCESSORS = {
    "max": ["neoni8mm", "neondot", "neon", "portable"],
    "neoverse-n1": ["neondot", "neon", "portable"],
    "cortex-a57": ["neon", "portable"],
}
# A line for each kernel has its file, a pattern of its mangled names, the instruction that
# multiplies and adds, how many of them one step has, the registers that the step loads, and the
# instructions of the whole step. docs/performance.md predicts from these numbers.
LOOPS = {
    "float32": ("neon", r"keep_best.*NeonFloat", r"fmla\tv\d+\.4s", 24, 10, 37),
    "float64": ("neon", r"keep_best.*NeonDouble", r"fmla\tv\d+\.2d", 24, 10, 37),
    "map": ("neon", r"multiply_tile.*NeonFloat", r"fmla\tv\d+\.4s", 24, 10, 37),
    "sdot": ("neondot", r"score_tiles", r"sdot\t", 24, 6, 33),
    "smlal": ("neondot", r"score_tiles", r"smlal2?\t", 48, 6, 58),
    "smmla": ("neoni8mm", r"score_tiles", r"smmla\t", 24, 11, 39),
}
HEADERS = {
    "string.h": """#include <stddef.h>
        extern "C" void* memcpy(void*, const void*, size_t);
        extern "C" void* memset(void*, int, size_t);
        extern "C" int memcmp(const void*, const void*, size_t);""",
    "math.h": """#define HUGE_VAL __builtin_huge_val()
        extern "C" double sqrt(double);
        extern "C" double fabs(double);
        extern "C" float fabsf(float);
        extern "C" double copysign(double, double);""",
    "type_traits": """namespace std {
        template <class T> inline constexpr bool is_floating_point_v = false;
        template <> inline constexpr bool is_floating_point_v<float> = true;
        template <> inline constexpr bool is_floating_point_v<double> = true;
        }""",
    "sys/sysctl.h": """#include <stddef.h>
        extern "C" int sysctlbyname(const char*, void*, size_t*, void*, size_t);""",
}
# These go through memory or copy a vector: a spilled or a copied accumulator.
MOVES = re.compile(r"sp[],]|mov\tv")
VECTOR_ON_STACK = re.compile(r"\tq.*\[sp")


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", TARGET)
    return build_settings()


def translate(settings, isa, *how, compiler=CROSS_COMPILER):
    """The file that a compiler makes of an instruction set, as setup.py would."""
    source = ROOT / settings["kernel_source"](isa)
    flags = [flag for flag in settings["COMMON_FLAGS"] if flag != "-fopenmp"]
    files = [*(ROOT / "csrc").rglob("*.h"), source]
    state = b"".join(file.read_bytes() for file in sorted(files))
    return compiled_once([compiler, *flags, *settings["ISA_FLAGS"][isa], *how, source], state)


def functions(made):
    """The functions of an object file, as lists of (address, instruction)."""
    command = [OBJDUMP, "-d", "-w", "--no-show-raw-insn", made]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for part in listing.split("\n\n"):
        if name := re.match(r"[0-9a-f]+ <(\w+)", part):
            found = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*)$", part, re.MULTILINE)
            yield name[1], [(int(address, 16), text) for address, text in found]


def blocks(instructions):
    """The instructions between jumps and the places that jumps lead to."""
    jump = re.compile(r"(?:b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+([0-9a-f]+)")
    targets = {int(to[1], 16) for _, text in instructions if (to := jump.match(text))}
    block: list[str] = []
    for address, text in instructions:
        if address in targets:
            yield block
            block = []
        block.append(text)
        if jump.match(text):
            yield block
            block = []
    yield block


def loaded_registers(loop):
    return sum(2 if "ldp" in text else 1 for text in loop if re.match(r"ldp|ldu?r", text))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kernel", LOOPS)
def test_the_inner_loop_stays_in_registers(settings, kernel):
    isa, name, multiply_add, count, loads, instructions = LOOPS[kernel]
    checked = 0
    for symbol, text in functions(translate(settings, isa, "-c")):
        if not re.search(name, symbol):
            continue
        for loop in inner_loops(text):
            if sum(bool(re.match(multiply_add, line)) for line in loop) != count:
                continue
            checked += 1
            moved = [line for line in loop if MOVES.search(line)]
            assert not moved, f"{symbol} moves its accumulators"
            assert isa == "neon" or not any(VECTOR_ON_STACK.search(line) for _, line in text)
            assert (loaded_registers(loop), len(loop)) == (loads, instructions)
    assert checked >= 1 + (isa != "neon")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "neondot", "neoni8mm"])
def test_a_kernel_file_shares_no_function(settings, isa):
    """As on x86 (test_instruction_sets.py): unoptimised, every function that is used shows."""
    made = translate(settings, isa, "-O0", "-c")
    listing = subprocess.run([NM, "-C", made], check=True, capture_output=True, text=True).stdout
    symbols = [line.split(maxsplit=2) for line in listing.splitlines()]
    shared = [s for s in symbols if len(s) == 3 and (s[1].isupper() or s[1] in "uvw")]
    assert f"vqvae_fast::isa::{isa}" in [symbol for _, _, symbol in shared]
    for _, kind, symbol in shared:
        assert symbol.startswith("vqvae_fast::isa::")
        assert kind in "DR", f"{symbol} is no constant"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "probe"), [("neondot", "machine_has_dotprod"), ("neoni8mm", "machine_has_i8mm")]
)
def test_a_probe_runs_on_every_machine(settings, isa, probe):
    """A probe runs where the instructions of its file are missing."""
    text = translate(settings, isa, "-S").read_text()
    in_force = re.findall(r"^\t\.arch (.*)$", text.partition(f"{probe}Ev:")[0], re.MULTILINE)
    assert in_force[-1] == "armv8-a+crc" or in_force[-1] == "armv8-a"
    in_force = re.findall(r"^\t\.arch (.*)$", text.partition("score_rowE")[0], re.MULTILINE)
    assert in_force[-1].startswith("armv8.2-a")


@needs_compiler
@pytest.mark.skipif(CLANG is None, reason="clang++ is not there")
@pytest.mark.slow
@pytest.mark.parametrize("kernel", LOOPS)
def test_clang_keeps_the_scores_in_registers(settings, kernel):
    """Apple's compiler is a Clang. It turns loops around, so their bodies are looked for."""
    isa, name, multiply_add, count, *_ = LOOPS[kernel]
    checked = 0
    made = translate(settings, isa, "--target=aarch64-linux-gnu", "-c", compiler=CLANG)
    for symbol, instructions in functions(made):
        for block in blocks(instructions) if re.search(name, symbol) else []:
            if sum(bool(re.match(multiply_add, line)) for line in block) == count:
                checked += 1
                assert not any(VECTOR_ON_STACK.search(line) for line in block), symbol
    assert checked >= 1


@pytest.mark.skipif(CLANG is None, reason="clang++ is not there")
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "neondot", "neoni8mm"])
def test_it_compiles_for_macos(monkeypatch, tmp_path, isa):
    """Apple's headers are not to be had here: these declare what the kernels use of them."""
    for name, text in HEADERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#pragma once\n{text}\n")
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "macosx-11.0-arm64")
    how = ["--target=arm64-apple-macos11", "-ffreestanding", "-nostdlibinc", "-isystem", tmp_path]
    text = translate(build_settings(), isa, *how, "-S", compiler=CLANG).read_text()
    assert re.search(r"\.globl\s+__ZN10vqvae_fast3isa\d+neon", text)
    assert ("_sysctlbyname" in text) == (isa != "neon")


def program(monkeypatch, *flags, **how):
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", TARGET)
    return build("-O3", "-static", *flags, compiler=CROSS_COMPILER, **how)


@needs_compiler
@needs_emulator
@pytest.mark.slow
def test_each_processor_gets_the_sets_that_it_has(monkeypatch):
    driver = Path(__file__).with_name("available_sets.cpp")
    made = program(monkeypatch, driver=driver)
    for processor, sets in PROCESSORS.items():
        environment = {**os.environ, "QEMU_CPU": processor}
        process = subprocess.run([EMULATOR, made], env=environment, capture_output=True, text=True)
        assert process.stdout.split() == sets, processor


@needs_compiler
@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["max", "neoverse-n1"])
def test_its_filter_settles_rows_with_the_bits_of_this_machine(monkeypatch, processor):
    """The filter of each processor's best set has its part in it."""
    rounds, seed = 30, 5
    here = attack(build("-O3"), rounds, seed)
    monkeypatch.setenv("QEMU_CPU", processor)
    there = attack(program(monkeypatch), rounds, seed, EMULATOR)
    assert there["answers"] == here["answers"]
    settled = {name: rows for name, rows in there.items() if name.endswith(("settled", "_wide"))}
    assert settled
    assert all(rows > 20 for rows in settled.values()), settled


@needs_compiler
@needs_emulator
@pytest.mark.slow
def test_a_loose_bound_is_found(monkeypatch):
    """The comparison must notice a filter that rules out too much, in each of the two."""
    made = program(monkeypatch, "-DVQVAE_FAST_TEST_LOOSE_BOUND")
    for processor, (best, *_) in list(PROCESSORS.items())[:2]:
        environment = {**os.environ, "QEMU_CPU": processor}
        command = [EMULATOR, made, "20", "1"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 1
        assert process.stdout.startswith(f"{best}, ")
