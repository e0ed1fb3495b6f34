"""Every CPU instruction set against the portable one, bit for bit, on thousands of random searches.

The kernels and their driver are compiled here without torch, as they are and with the address and
the undefined-behaviour sanitizer, and for 64-bit Arm, which an emulator runs.
VQVAE_FAST_ATTACK_ROUNDS makes it longer (make test-sanitizers).
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kernels import FILTERING, INSTRUCTION_SETS, ROOT, build_settings, compiled_once, filtering_sets

COMPILER = shutil.which("g++")
CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there"),
    pytest.mark.skipif(COMPILER is None, reason="g++ is not there"),
]
DRIVER = Path(__file__).with_name("attack.cpp")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]


def build(*flags, fault="", faulty="", compiler=COMPILER, kernels=None, driver=DRIVER):
    """The program: the kernels, each with the flags of setup.py, and the driver.

    fault: a macro that makes the integer filter of the instruction set ``faulty`` wrong.
    kernels: the instruction sets with their sources and flags, those of setup.py if None.
    """
    settings = build_settings()
    if kernels is None:
        source = settings["kernel_source"]
        kernels = {isa: (ROOT / source(isa), own) for isa, own in settings["ISA_FLAGS"].items()}
    common = [flag for flag in settings["COMMON_FLAGS"] if flag not in ("-O3", "-fopenmp")]
    common.append(f"-DVQVAE_FAST_ISAS={','.join(kernels)}")
    common.append("-DVQVAE_FAST_TEST_SMALL_AS_LARGE")  # in small searches, too
    sources = dict(kernels.values())
    if fault:
        wrong, own = kernels[faulty]
        sources[wrong] = [*own, f"-D{fault}"]
    drivers = ["search.cpp", "packed_codebook.cpp", "int8_filter/filter.cpp"]
    drivers += ["codes/distinct.cpp", "dispatch.cpp"]
    drivers += ["top_codes/measured.cpp", "top_codes/search.cpp"]
    sources |= {ROOT / "csrc" / "cpu" / name: [] for name in drivers}
    sources[driver] = ["-ffp-contract=off"]  # the same inputs, whatever the flags
    read = [*DRIVER.parent.glob("*.cpp"), *DRIVER.parent.glob("*.h")]
    read += [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]
    state = b"".join(file.read_bytes() for file in sorted(read))

    def compile_one(source):
        return compiled_once([compiler, *common, *flags, *sources[source], "-c", source], state)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    return compiled_once([compiler, *flags, "-pthread", *objects], state)


def attack(program, rounds, seed, emulator=None):
    """Runs it; the digests and counts that it printed."""
    rounds = int(os.environ.get("VQVAE_FAST_ATTACK_ROUNDS", rounds))
    # Address space layouts with more random bits than the sanitizers know stop them.
    command = ["setarch", "-R"] if shutil.which("setarch") else []
    if emulator is not None:
        command = [emulator]
    process = subprocess.run(
        [*command, program, str(rounds), str(seed)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    words = process.stdout.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


@pytest.mark.parametrize(
    ("flags", "rounds"),
    [(["-O3"], 1500), (["-O1", *SANITIZERS], 120)],
    ids=["as it is", "with sanitizers"],
)
def test_instruction_sets_return_the_same_bits(flags, rounds):
    counts = attack(build(*flags), rounds, seed=1)
    assert counts["cases"] >= 120
    assert counts["measured"] > 5000  # by all instruction sets together
    for isa in filtering_sets():  # the filters had their part in it
        assert counts[f"{isa}.settled"] > 500
        assert counts[f"{isa}.settled_wide"] > 20


@pytest.mark.parametrize(
    ("fault", "isa"),
    [
        *(("VQVAE_FAST_TEST_LOOSE_BOUND", isa) for isa in FILTERING),
        *(("VQVAE_FAST_TEST_CUT_OFF", isa) for isa in ("avx2", "avx512")),
    ],
)
def test_a_faulty_filter_is_found(fault, isa):
    """The comparison must notice a filter that rules out too much, because its bound is too high or
    because products of bytes that do not fit in 16 bits are cut off."""
    if isa not in INSTRUCTION_SETS:
        pytest.skip(f"this machine lacks {isa}")
    process = subprocess.run(
        [build("-O3", fault=fault, faulty=isa), "2000", "1"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stdout.startswith(f"{isa}, ")


@pytest.mark.skipif(CROSS_COMPILER is None, reason="aarch64-linux-gnu-g++ is not there")
@pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is not there")
def test_aarch64_returns_the_bits_of_this_machine(monkeypatch):
    rounds, seed = 60, 3
    here = attack(build("-O3"), rounds, seed)
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")

    def there(*flags):
        program = build("-O3", "-static", *flags, compiler=CROSS_COMPILER)
        return attack(program, rounds, seed, EMULATOR)

    plain = there()
    # The random numbers come from logarithms of the C library, which the kernels do not use.
    assert plain["inputs"] == here["inputs"]
    assert plain["answers"] == here["answers"]
    # GCC contracts by default what is not written in intrinsics, so the portable kernels would
    # differ from NEON's: the comparison must notice what setup.py turns off.
    with pytest.raises(AssertionError, match=r"neon.*, expected"):
        there("-ffp-contract=fast")
