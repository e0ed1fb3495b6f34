"""The machine's limits: plausible where they are measured, and None with a reason elsewhere."""

import json
import platform
import shlex
import statistics
from pathlib import Path

import pytest

from vqvae_fast.bench import peak, search
from vqvae_fast.bench.peak import kernels, limits, native

CPUINFO = Path("/proc/cpuinfo")
CPU_FLAGS = CPUINFO.read_text().split() if CPUINFO.exists() else []
ON_X86 = platform.machine() in ("x86_64", "AMD64")
EVERY_KERNEL = [(kind, kernel) for kind, them in kernels.KERNELS.items() for kernel in them]
# What a core can do in a clock: two multiplications of vectors, and no less than a fifth of one
# (three instructions, or emulated by halves). Beside a busy neighbour a sample of the clock may be
# off by half.
FEWEST, MOST = 0.2 / 2, 2 * 2


@pytest.fixture
def compiler():
    try:
        return native.compiler()
    except peak.PeakUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def old_compiler(compiler, monkeypatch, tmp_path):
    """A function that makes the compiler refuse whatever mentions one of some words."""

    def forget(*words):
        script = tmp_path / "old"
        patterns = "|".join(f"*{word}*" for word in words)
        script.write_text(
            f'#!/bin/sh\ncase "$*" in {patterns}) echo "unknown" >&2; exit 1;; esac\n'
            f'exec {shlex.quote(compiler)} "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))

    return forget


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(limits, "_LEAST_MEMORY", 1 << 20)
    monkeypatch.setattr(limits, "_cache_sizes", dict)


def test_limits_are_plausible(compiler):
    record = json.loads(json.dumps(peak.measure_limits(1, seconds=0.5)))
    figures = [*limits.MULTIPLY_ADDS, "read_gb_per_s", "copy_gb_per_s", "cache_read_gb_per_s"]
    assert record["bursts"] >= 5
    for figure in figures:
        if record[figure] is None:
            assert record["unavailable"][figure]
            continue
        low, high = record["ranges"][figure]
        assert 0 < low <= record[figure] <= high
    assert record["float32_gflops"] is not None
    # The quickest bursts: those that no neighbour disturbed.
    best = {figure: high for figure, (_, high) in record["ranges"].items()}
    if record["isas"].get("int8_gops", "").endswith("vnni"):
        assert 2 <= best["int8_gops"] / best["float32_gflops"] <= 8
        assert 1.5 <= best["int8_gops"] / best["int16_gops"] <= 3
    if "read_gb_per_s" in best:
        # Copies count both ways, and may overlap them; on a shared machine bursts differ more.
        assert 0.2 < best["copy_gb_per_s"] / best["read_gb_per_s"] < 6
        assert best["cache_read_gb_per_s"] > best["read_gb_per_s"]
        # A core's share of a memory controller, and what its load ports can take (128 bytes).
        assert best["read_gb_per_s"] > 0.5
        assert best["cache_read_gb_per_s"] < 2 * 128 * record["clock_ghz"]


@pytest.mark.parametrize(
    ("number_format", "kernel"), EVERY_KERNEL, ids=[f"{f}-{k.isa}" for f, k in EVERY_KERNEL]
)
def test_every_kernel_keeps_the_processor_busy(compiler, number_format, kernel):
    try:
        loop = kernels.load(number_format, kernel)
    except peak.PeakUnavailableError as error:
        pytest.skip(f"{kernel.isa}: {error}")
    rate = native.Rate(loop, 1, 0.001)
    clock = statistics.median(native.clock_hz() for _ in range(5))
    # The portable kernel is vectorised as the compiler sees fit. Tiles take 16 clocks.
    width = {"portable": 16, "amx": kernel.vector_bytes / 16}.get(kernel.isa, kernel.vector_bytes)
    in_a_vector = 2 * width / kernels._ELEMENT_BYTES[number_format]
    vectors_a_clock = max(rate.burst() for _ in range(5)) / clock / in_a_vector
    assert FEWEST < vectors_a_clock < MOST


def test_operations_are_counted_twice_for_each_product(compiler):
    if not ON_X86:
        pytest.skip("the processor has but the portable kernel")
    per_step = {}
    for number_format in ("float32", "int8", "int16"):
        kernel = next(k for k in kernels.KERNELS[number_format] if k.isa == "avx2")
        try:
            per_step[number_format] = kernels.load(number_format, kernel).per_step
        except peak.PeakUnavailableError as error:
            pytest.skip(f"avx2: {error}")
    # 12 sums of vectors of 32 bytes.
    assert per_step == {"float32": 2 * 12 * 8, "int8": 2 * 12 * 32, "int16": 2 * 12 * 16}


@pytest.mark.parametrize("number_format", ["amx_int8", "amx_bfloat16"])
def test_products_of_tiles_are_counted_and_assembled(compiler, number_format):
    """The compiler and the assembler take them, whether or not the processor can run them."""
    if not ON_X86:
        pytest.skip("the kernel is written for x86-64")
    (kernel,) = kernels.KERNELS[number_format]
    library = native.build("tiles.cpp", f'INSTRUCTION="{kernel.instructions}"', "SUPPORTED=0")
    assert not library.loop_is_supported()
    products = {"amx_int8": 16 * 16 * 64, "amx_bfloat16": 16 * 16 * 32}[number_format]
    assert kernel.vector_bytes // kernels._ELEMENT_BYTES[number_format] == products
    if "amx_tile" not in CPU_FLAGS:
        with pytest.raises(peak.PeakUnavailableError, match="lacks it, or the system denies it"):
            kernels.load(number_format, kernel)


def test_an_unknown_instruction_costs_only_its_own_figure(old_compiler, small_memory):
    old_compiler("vdpbf16ps", "vpdpbusd")
    record = peak.measure_limits(1, seconds=0.01)
    assert record["bfloat16_gflops"] is None
    reason = record["unavailable"]["bfloat16_gflops"]
    if ON_X86:
        assert reason == "avx512bf16: multiply_add.cpp does not compile: unknown"
        assert record["isas"].get("int8_gops", "avx2") in ("avx512", "avx2")
    for figure in ("float32_gflops", "read_gb_per_s", "copy_gb_per_s", "cache_read_gb_per_s"):
        assert record[figure] > 0


def test_other_processors_have_float32_and_bandwidth(compiler, small_memory, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    record = peak.measure_limits(1, seconds=0.01)
    assert record["isas"]["float32_gflops"] == record["isas"]["copy_gb_per_s"] == "portable"
    assert set(record["unavailable"]) == {*limits.MULTIPLY_ADDS} - {"float32_gflops"}
    assert all("is written for x86-64, not for" in why for why in record["unavailable"].values())


def test_a_processor_without_the_instructions_is_told_from_the_compiler(compiler, monkeypatch):
    if not ON_X86:
        pytest.skip("the kernel is written for x86-64")
    # A set of 2011 that no processor with AVX2 has kept.
    never = kernels.Kernel("avx9", 32, ("xop",), "vpaddd %[x], %[sum], %[sum]")
    monkeypatch.setitem(kernels.KERNELS, "int8", (never,))
    with pytest.raises(peak.PeakUnavailableError, match="avx9: this processor lacks it"):
        kernels.best("int8")


def test_an_instruction_set_that_does_not_run_is_refused(old_compiler):
    old_compiler("vfmadd231ps")
    with pytest.raises(peak.PeakUnavailableError, match="must be one of portable here, got avx2"):
        kernels.named("float32", "avx2")
    assert kernels.best("float32")[0] == kernels.named("float32", "portable")[0]


def test_all_is_unavailable_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    record = peak.measure_limits(1)
    assert set(record["unavailable"].values()) == {
        "no C++ compiler was found (CXX, c++, g++, clang++)"
    }
    assert len(record["unavailable"]) == 9
    assert record["float32_gflops"] is record["copy_gb_per_s"] is record["clock_ghz"] is None


def test_bandwidth_needs_room_beyond_the_caches(compiler, monkeypatch):
    monkeypatch.setattr(limits, "_cache_sizes", lambda: {2: {"0": 1 << 20}, 3: {"0": 1 << 50}})
    with pytest.raises(peak.PeakUnavailableError, match="needs 4294967296 MiB, more than a quart"):
        limits._uncached("read", 1)


def test_cache_sizes_count_shared_caches_once(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "_PROCESSORS", tmp_path)
    assert limits._cache_sizes() == {}
    for cpu in range(2):
        for index, (level, kind, shared, size) in enumerate(
            [(1, "Data", cpu, 32), (1, "Instruction", cpu, 64), (3, "Unified", "0-1", 2048)]
        ):
            cache = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            (cache / "level").write_text(f"{level}\n")
            (cache / "type").write_text(f"{kind}\n")
            (cache / "shared_cpu_list").write_text(f"{shared}\n")
            (cache / "size").write_text(f"{size}K\n")
    (tmp_path / "cpu2" / "cache" / "index0").mkdir(parents=True)  # tells nothing
    kib = 1024
    assert limits._cache_sizes() == {1: {"0": 32 * kib, "1": 32 * kib}, 3: {"0-1": 2048 * kib}}


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        peak.measure_limits(0)


def test_the_report_names_the_instruction_set_of_each_limit():
    record = {
        "bursts": 9,
        "int8_gops": 542.0,
        "read_gb_per_s": 20.0,
        "ranges": {"int8_gops": [500.0, 560.0], "read_gb_per_s": [19.0, 21.0]},
        "isas": {"int8_gops": "avxvnni", "read_gb_per_s": "avx2"},
    }
    assert search._limits_line(record) == (
        "Limits, of 9 bursts each: int8 by avxvnni 542 GOP/s (500-560), "
        "reading memory 20 GB/s (19-21).\n\n"
    )
