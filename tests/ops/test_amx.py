"""The integer filter on Intel's matrix unit, over a stand-in of its instructions in plain C++.

The kernel's vectors are those of AVX-512 VNNI, so a processor that has it runs these tests; one
with the matrix unit runs every other test of the search with the instruction set avx512amx, too.
"""

import errno
import re
import shutil
import subprocess
import sys

import pytest
from kernels import INSTRUCTION_SETS, ROOT, build_settings, compiled_once
from test_attack import COMPILER, DRIVER, SANITIZERS, attack, build

pytestmark = [
    pytest.mark.skipif("avx512vnni" not in INSTRUCTION_SETS, reason="there is no AVX-512 VNNI"),
    pytest.mark.skipif(COMPILER is None, reason="g++ is not there"),
]
HERE = DRIVER.parent
WITH_AND_WITHOUT_SANITIZERS = pytest.mark.parametrize(
    "flags",
    [["-O2"], pytest.param(["-O1", *SANITIZERS], marks=pytest.mark.slow)],
    ids=["as it is", "with sanitizers"],
)


def kernels(**others):
    """The portable kernels, the engines of AVX-512 and others: name -> source."""
    settings = build_settings()
    source, flags = settings["kernel_source"], settings["ISA_FLAGS"]
    sources = {isa: ROOT / source(isa) for isa in ("portable", "avx512")} | others
    return {isa: (path, flags.get(isa, flags["avx512amx"])) for isa, path in sources.items()}


STAND_IN = {"amx_stand_in": HERE / "amx_stand_in.cpp"}


@WITH_AND_WITHOUT_SANITIZERS
def test_scores_are_those_of_plain_sums(flags):
    read = [*HERE.glob("amx_*"), *(ROOT / "csrc").rglob("*.h")]
    state = b"".join(file.read_bytes() for file in sorted(read))
    own = ["-std=c++20", "-ffp-contract=off", *build_settings()["ISA_FLAGS"]["avx512amx"]]
    program = compiled_once([COMPILER, *own, *flags, HERE / "amx_scores.cpp"], state)
    process = subprocess.run([program], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert int(process.stdout.split()[1]) > 600


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not there")
def test_the_assembler_s_instructions_are_the_compiler_s(tmp_path):
    """The stand-in shows that the kernel is right if each instruction does what its name says.
    This shows that each is that instruction, with its operands in their places."""
    made = tmp_path / "encodings.o"
    flags = ["-std=c++20", "-O1", "-mamx-tile", "-mamx-int8"]
    subprocess.run([COMPILER, *flags, "-c", HERE / "amx_encodings.cpp", "-o", made], check=True)
    command = ["objdump", "-d", "-w", made]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^[0-9a-f]+ <(ours|theirs)_(\w+)>:\n((?:.+\n)+)", listing, re.MULTILINE)
    made_of = {(side, name): re.findall(r":\t([^\t]+)\t(\S+)", body) for side, name, body in lines}
    names = {name for _, name in made_of}
    assert names == {"load", "store", "add", "configure", "read", "release"}
    for name in names:
        assert made_of["ours", name] == made_of["theirs", name]
        assert any(re.match("tile|tdp|ldt|stt", word) for _, word in made_of["ours", name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "rounds"),
    [(["-O3"], 400), (["-O1", *SANITIZERS], 60)],
    ids=["as it is", "with sanitizers"],
)
def test_searches_return_the_bits_of_the_portable_kernels(flags, rounds):
    counts = attack(build(*flags, kernels=kernels(**STAND_IN)), rounds, seed=5)
    assert counts["amx_stand_in.settled"] > 500
    assert counts["amx_stand_in.settled_wide"] > 20


@pytest.mark.slow
@WITH_AND_WITHOUT_SANITIZERS
def test_threads_and_forks_have_tiles_of_their_own(flags):
    program = build(*flags, kernels=kernels(**STAND_IN), driver=HERE / "amx_threads.cpp")
    process = subprocess.run([program], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "agreed\n"), process.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(
    ("answers", "has"),
    [
        ([0], "1"),
        ([errno.EPERM], "0"),
        ([errno.ENOSYS], "0"),
        ([errno.EOPNOTSUPP], "0"),
        # The first answer holds: a process is asked about once.
        ([0, errno.EPERM], "1 1"),
        ([errno.EPERM, 0], "0 0"),
    ],
)
def test_the_unit_serves_only_where_linux_grants_it(answers, has):
    asked = kernels(avx512amx=ROOT / build_settings()["kernel_source"]("avx512amx"))
    program = build(
        *("-O1", "-DVQVAE_FAST_TEST_PROCESSOR_HAS_TILES"),
        kernels=asked,
        driver=HERE / "amx_permission.cpp",
    )
    process = subprocess.run([program, *map(str, answers)], capture_output=True, text=True)
    if process.returncode == 77:
        pytest.skip(f"system calls cannot be answered here: {process.stderr}")
    assert (process.returncode, process.stdout.strip()) == (0, has)
