"""Without the compiled module, or with one that cannot be used: slower, exact, and said once.

Where it was asked for by name, every op raises.
"""

import os
import re
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fresh_python import FreshPython
from kernels import INSTRUCTION_SETS

import vqvae_fast
from vqvae_fast._version import EXTENSION_CONTRACT

PACKAGE = Path(vqvae_fast.__file__).parent
needs_extension = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
# Each use of the package that could warn again, and a result that shows that it works.
USE = """
import torch, vqvae_fast
from vqvae_fast import _native, functional
z, codebook = torch.eye(3, requires_grad=True), torch.eye(3).flip(0)
for _ in range(2):
    got = vqvae_fast.quantize(z, codebook)
    assert vqvae_fast.nearest_code(z, codebook).indices.tolist() == [2, 1, 0]
    assert vqvae_fast.segment_sum(z, got.indices, 3).counts.tolist() == [1, 1, 1]
got.loss.backward()
print("extension:", _native.extension is not None, "reason:", _native.reason)
"""


@pytest.fixture
def python(fresh_python):
    def run(code, package=PACKAGE, **variables):
        interpreter = {k: v for k, v in variables.items() if k == "TRITON_INTERPRET"}
        if not interpreter:
            return fresh_python.run(code, package=package, warn="always", **variables)
        with FreshPython(**interpreter) as own:
            return own.run(code, package=package, warn="always", **variables)

    return run


def copy_without_module(tmp_path):
    return Path(
        shutil.copytree(
            PACKAGE,
            tmp_path / "vqvae_fast",
            ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
        )
    )


def warnings_of(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "vqvae_fast:" in line]


def test_switched_off(python):
    done = python(USE, VQVAE_FAST_NO_EXT="1")
    (warning,) = warnings_of(done)
    assert "VQVAE_FAST_NO_EXT=1 is set: searches run in plain PyTorch" in warning
    assert "extension: False reason: VQVAE_FAST_NO_EXT=1 is set" in done.stdout


def test_not_built(python, tmp_path):
    done = python(USE, copy_without_module(tmp_path))
    (warning,) = warnings_of(done)
    assert "the C++ extension was not built" in warning
    assert "extension: False" in done.stdout


def numbers(contract=EXTENSION_CONTRACT):
    return f"vqvae_fast build: version {vqvae_fast.__version__}, contract {contract}".encode()


def stamp(contract=EXTENSION_CONTRACT, torch="2.9.1"):
    return numbers(contract) + f", torch {torch}\0".encode()


def test_broken(python, tmp_path):
    package = copy_without_module(tmp_path)
    (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"this is not a library" + stamp())
    done = python(USE, package)
    (warning,) = warnings_of(done)
    torches = f"it was compiled for torch 2.9.1, this is torch {torch.__version__}"
    assert f"the C++ extension is there but does not load ({torches}): " in warning
    assert "_C" in warning.partition("): ")[2]  # the loader's own reason
    assert "Install vqvae_fast again with `pip install --no-build-isolation" in warning
    assert "extension: False" in done.stdout


LOAD_CUDA = """
torch.version.cuda = "13.0"
module, reason = _native._load_cuda()
print("CUDA:", module, reason)
"""


@pytest.mark.quick(1)
@pytest.mark.parametrize("content", [b"", b"from before there was a stamp", stamp(0)])
@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_another_version_is_not_even_loaded(python, tmp_path, name, content):
    """A Python file tells whether it was run, as no library could."""
    package = copy_without_module(tmp_path)
    (package / f"{name}.py").write_bytes(b"raise SystemExit('it was loaded')  # " + content)
    done = python(USE + LOAD_CUDA, package)
    kind = {"_C": "C++", "_cuda": "CUDA"}[name]
    built_for = "version .*, contract 0" if content == stamp(0) else "an unknown version"
    found = [line for line in warnings_of(done) if f"the {kind} extension" in line]
    assert len(found) == 1
    sentence = f"is there but was built for {built_for} of vqvae_fast, this is version"
    assert re.search(sentence, found[0])
    assert re.search(sentence, done.stdout)


@pytest.mark.slow
@needs_extension
def test_a_library_of_another_version_leaves_the_calls_to_the_reference(python, tmp_path):
    package = copy_without_module(tmp_path)
    (library,) = PACKAGE.glob("_C.*")
    content = library.read_bytes()
    assert numbers() in content
    (package / library.name).write_bytes(content.replace(numbers(), numbers(0)))
    done = python(USE, package)
    (warning,) = warnings_of(done)
    assert "contract 0 of vqvae_fast, this is version" in warning
    assert "searches run in plain PyTorch" in warning
    assert "extension: False reason: the C++ extension is there but" in done.stdout
    info = python("from vqvae_fast.cli import main; main(['info'])", package)
    assert info.returncode == 0, info.stderr
    assert "C++: not available: the C++ extension is there but was built for" in info.stdout
    assert " -> PyTorch reference" in info.stdout


# Every op, called on tensors that suit it, and what it raises.
EVERY_OP = """
import torch, vqvae_fast
from vqvae_fast.autograd.gather import copy_of_codes, take_codes

ops = torch.ops.vqvae_fast
z, one = torch.eye(3), torch.tensor(1.0)
nothing = torch.empty(1, 0, dtype=torch.uint8)
places = torch.arange(3)
wide = torch.zeros(3, 16)
calls = {
    "nearest_code": lambda: vqvae_fast.nearest_code(z, z),
    "quantize": lambda: vqvae_fast.quantize(z, z),
    "segment_sum": lambda: vqvae_fast.segment_sum(z, places, 3),
    "residual_nearest_code": lambda: vqvae_fast.residual_nearest_code(z, z[None]),
    "pack_codebook": lambda: ops.pack_codebook(z),
    "nearest_packed_code": lambda: ops.nearest_packed_code(z, z, nothing[0]),
    "quantize_packed": lambda: ops.quantize_packed(z, z, nothing[0]),
    "residual_nearest_packed_code":
        lambda: ops.residual_nearest_packed_code(z, z[None], nothing),
    "composed_residual_code": lambda: ops.composed_residual_code(
        z, wide, wide[0], z[None], z[None], nothing, z[None], wide, wide[0], True
    ),
    "project": lambda: ops.project(z, wide, wide[0], 3),
    "nearest_codes": lambda: vqvae_fast.nearest_codes(z, z, 2),
    "nearest_packed_codes": lambda: ops.nearest_packed_codes(z, z, nothing[0], 2),
    "take_codes": lambda: take_codes(z, places),
    "copy_of_codes": lambda: copy_of_codes(z),
    "moving_average_": lambda: ops.moving_average_(z, z[0], z, z, places, 0.5, 1e-5),
    "quantize_backward": lambda: ops.quantize_backward(z, one, z, z, places, 0.25, 1.0),
    "residual_backward": lambda: ops.residual_backward(
        z, one[None], z, [z], places[:, None], False
    ),
}
defined = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names()
           if name.startswith("vqvae_fast::")}
of_modules = {"start_by_kmeans_", "last_stage"}  # no backend has kernels of these
of_tests = {"rows_settled_by_filter"}  # only the C++ kernels have a filter
assert set(calls) == defined - of_modules - of_tests - {"nearest_code.on"}, defined
for name, call in calls.items():
    try:
        call()
        print(name, "ran")
    except Exception as error:
        kind = next(t.__name__ for t in type(error).__mro__ if t.__module__ == "builtins")
        print(f"{name} {kind}: {error}")
print("by argument", vqvae_fast.nearest_code(z, z, backend="reference").indices.tolist())
"""


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"VQVAE_FAST_BACKEND": "nonsense"}, "ValueError: VQVAE_FAST_BACKEND must be auto or one"),
        ({"VQVAE_FAST_NO_EXT": "yes"}, "ValueError: VQVAE_FAST_NO_EXT must be 0 or 1, got 'yes'"),
        (
            {"VQVAE_FAST_BACKEND": "cpu", "VQVAE_FAST_NO_EXT": "1"},
            "RuntimeError: VQVAE_FAST_BACKEND=cpu, but VQVAE_FAST_NO_EXT=1 is set",
        ),
        (
            {"VQVAE_FAST_CPU_ISA": "portable", "VQVAE_FAST_NO_EXT": "1"},
            "RuntimeError: VQVAE_FAST_CPU_ISA=portable needs the C++ kernels, but VQVAE_FAST_",
        ),
        (
            {"VQVAE_FAST_CPU_ISA": "portable", "VQVAE_FAST_BACKEND": "reference"},
            "RuntimeError: VQVAE_FAST_CPU_ISA=portable needs the C++ kernels, but VQVAE_FAST_",
        ),
        pytest.param(
            {"VQVAE_FAST_BACKEND": "triton", "TRITON_INTERPRET": "true"},
            "ran",
            marks=pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not there"),
        ),
        ({"VQVAE_FAST_BACKEND": "reference"}, "ran"),
        ({"VQVAE_FAST_BACKEND": "reference", "VQVAE_FAST_NO_EXT": "1"}, "ran"),
        pytest.param(
            {"VQVAE_FAST_CPU_ISA": "foo"},
            "ValueError: VQVAE_FAST_CPU_ISA: the CPU instruction set must be one that",
            marks=needs_extension,
        ),
        pytest.param({"VQVAE_FAST_BACKEND": "cpu"}, "ran", marks=needs_extension),
        pytest.param(
            {"VQVAE_FAST_BACKEND": "cuda", "VQVAE_FAST_CPU_ISA": "portable"},
            "ran",
            marks=needs_extension,
        ),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_every_op_runs_as_it_was_asked_for_or_raises(python, variables, expected):
    done = python(EVERY_OP, **variables)
    assert warnings_of(done) == []
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 17
    assert all(expected in line for line in lines), done.stdout
    assert last == "by argument [0, 1, 2]"


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"VQVAE_FAST_BACKEND": "nonsense"}, "must be auto or one of cpu, cuda, reference, triton"),
        pytest.param(
            {"VQVAE_FAST_CPU_ISA": "foo"}, "must be one that this machine", marks=needs_extension
        ),
    ],
)
def test_info_says_what_is_wrong_and_the_rest(python, variables, sentence):
    done = python("from vqvae_fast.cli import main; main(['info'])", **variables)
    assert done.returncode == 0, done.stderr
    assert f" !! {next(iter(variables))}" in done.stdout
    assert sentence in done.stdout
    assert "PyTorch reference: runs on every device" in done.stdout
    assert ("build of the C++ extension" in done.stdout) == bool(INSTRUCTION_SETS)


def test_a_command_ends_with_the_sentence(python, tmp_path):
    import_and_search = (
        "import vqvae_fast.cli.app as app, click, torch, vqvae_fast;"
        "app.app.add_command(click.command('search')("
        "lambda: vqvae_fast.nearest_code(torch.eye(2), torch.eye(2))));"
        "from vqvae_fast.cli import main; main(['search'])"
    )
    done = python(import_and_search, VQVAE_FAST_BACKEND="nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("vqvae-fast: VQVAE_FAST_BACKEND must be auto or one of")
    assert done.stderr.count("\n") == 1


@pytest.mark.quick(1)
@needs_extension
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_an_instruction_set_by_environment(python, isa):
    done = python(USE + "print('isa:', _native.extension.cpu_isa())", VQVAE_FAST_CPU_ISA=isa)
    assert warnings_of(done) == []
    assert f"isa: {isa}" in done.stdout


@pytest.mark.skipif(
    os.environ.get("VQVAE_FAST_REQUIRE_EXT") != "1", reason="VQVAE_FAST_REQUIRE_EXT is not set"
)
def test_the_extension_is_there_where_it_is_required():
    assert INSTRUCTION_SETS
