"""What nvcc makes of the CUDA sources, on a machine that need not have a GPU.

Each file must compile without a warning for every generation of GPUs and keep its numbers in
registers, and the binding must compile against whatever torch is there.
"""

import re
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
ARCHS = ("75", "80", "90", "100")
SOURCES = ("search", "segment_sum", "sort")
BINDING = ("ops", "module")
pytestmark = [
    pytest.mark.slow,  # nvcc takes half a minute; the quick suite has the kernels on the host
    pytest.mark.skipif(
        shutil.which("nvcc") is None, reason="nvcc is not there: the CUDA sources were not compiled"
    ),
    pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt (binutils) is not there"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Runs all compilers side by side: {name: (exit status, messages)}, and where they wrote."""
    folder = tmp_path_factory.mktemp("nvcc")
    device = ["nvcc", "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", "-fatbin"]
    for arch in ARCHS:
        device += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    commands = {
        name: [*device, ROOT / f"csrc/cuda/{name}.cu", "-o", folder / f"{name}.fatbin"]
        for name in SOURCES
    }
    includes = [*include_paths(), sysconfig.get_path("include")]
    binding = [
        # nvcc knows where its own headers are, and hands C++ to the C++ compiler.
        *("nvcc", "-std=c++20", "-Xcompiler", "-fsyntax-only,-Wall,-Werror", "-c"),
        *(flag for path in includes for flag in ("-isystem", path)),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030A0000", "-DUSE_CUDA"),
        *("-DVQVAE_FAST_VERSION=0", "-DVQVAE_FAST_CONTRACT=0", "-DVQVAE_FAST_TORCH=0"),
    ]
    for name in BINDING:
        source = ROOT / f"csrc/binding/cuda/{name}.cpp"
        commands[name] = [*binding, source, "-o", folder / f"{name}.o"]
    compilers = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in commands.items()
    }
    outputs = {name: compiler.communicate()[0] for name, compiler in compilers.items()}
    return {name: (compilers[name].returncode, outputs[name]) for name in compilers}, folder


def plain_names(symbols):
    """The kernels' names without arguments and namespaces."""
    names = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for noise in ("void ", "(anonymous namespace)::", "vqvae_fast::"):
        names = [name.replace(noise, "") for name in names]
    return [name.partition("(")[0] for name in names]


def resources(messages):
    """What ptxas -v says: (kernel, arch, registers, bytes of shared memory, bytes spilled)."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    for symbol, arch, stores, loads, registers, rest in re.findall(pattern, messages, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield (
            symbol,
            arch,
            int(registers),
            int(shared[1]) if shared else 0,
            int(stores) + int(loads),
        )


@pytest.mark.parametrize("name", SOURCES)
def test_kernels_compile_for_every_generation(compiled, name, capsys):
    status, messages = compiled[0][name]
    assert status == 0, messages
    ours = [row for row in resources(messages) if "10vqvae_fast" in row[0]]
    if name == "sort":  # a library's kernels
        return
    assert {arch for _, arch, *_ in ours} == set(ARCHS)
    table = [f"{'sm':>3} {'registers':>9} {'shared':>6} {'spilled':>7}  kernel"]
    names = plain_names([symbol for symbol, *_ in ours])
    for kernel, (_, arch, registers, shared, spilled) in zip(names, ours, strict=True):
        table.append(f"{arch:>3} {registers:>9} {shared:>6} {spilled:>7}  {kernel}")
    with capsys.disabled():
        print("\n" + "\n".join(table))
    assert all(spilled == 0 for *_, spilled in ours), "a kernel spills registers"


@pytest.mark.parametrize("name", BINDING)
def test_the_binding_compiles(compiled, name):
    status, messages = compiled[0][name]
    assert status == 0, messages


def functions(listing):
    """(symbol, [(address, instruction)]) of each function in what cuobjdump -sass prints."""
    for part in listing.split("Function : ")[1:]:
        symbol = part.split(None, 1)[0]
        found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", part)
        yield symbol, [(int(address, 16), text) for address, text in found]


def branch_target(text):
    jump = re.search(r"\bBRA(?:\.\w+)* (?:`\(\S+\)|U?P?\d*,? ?)?(0x[0-9a-f]+)", text)
    return int(jump[1], 16) if jump else None


def multiply_share(instructions):
    """Of the loop over elements: FFMA instructions, and all of them. What only the last step of a
    tile runs, the comparison of the scores (FMNMX), is not counted: a branch leaps over it."""
    place = {address: i for i, (address, _) in enumerate(instructions)}
    targets = [place.get(branch_target(text)) for _, text in instructions]
    loops = [(to, i) for i, to in enumerate(targets) if to is not None and to <= i]
    best = (0, 1)
    for begin, end in loops:
        body = [text for _, text in instructions[begin : end + 1]]
        for i in range(begin, end):
            leap = targets[i]
            if leap is None or not i < leap <= end:
                continue
            over = [text for _, text in instructions[i + 1 : leap]]
            if sum("FMNMX" in text for text in over) > 100 and not any("FFMA" in t for t in over):
                for j in range(i + 1, leap):
                    body[j - begin] = ""
        multiplies = sum("FFMA" in text for text in body)
        best = max(best, (multiplies, sum(bool(text) for text in body)))
    return best


@pytest.mark.parametrize("arch", ARCHS)
def test_the_inner_loop_multiplies(compiled, arch, capsys):
    """8 x 8 scores for 16 numbers read: most instructions must be multiply-adds."""
    triton = find_spec("triton")
    tool = triton and Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    if not tool or not tool.exists():
        pytest.skip("cuobjdump (from the package triton) is not there")
    file = compiled[1] / "search.fatbin"
    listing = subprocess.run(
        [tool, "-sass", "-arch", f"sm_{arch}", file], capture_output=True, text=True, check=True
    ).stdout
    kernels = dict(functions(listing))
    shares = {
        name: multiply_share(instructions)
        for name, instructions in zip(plain_names(kernels), kernels.values(), strict=True)
        if name.startswith("search<")
    }
    with capsys.disabled():
        print()
        for name, (multiplies, count) in shares.items():
            print(f"sm_{arch} {name}: {multiplies} FFMA of {count}, {multiplies / count:.0%}")
    assert len(shares) == 3  # float, bfloat16, float16
    for multiplies, count in shares.values():
        assert multiplies >= 512
        assert multiplies >= 0.75 * count
