"""What works after the plain install, and what is said where an extra is missing.

The commands run in a process that cannot import any installed package but some: those of the base
dependencies in pyproject.toml, and those that they require themselves.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from test_cli import call

import vqvae_fast

ROOT = Path(vqvae_fast.__file__).parents[1]
# Runs each command; an absent package is not found, whether it is imported or looked for.
CHILD = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder

absent, commands = json.load(sys.stdin)
absent = set(absent)

class WithoutAbsent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutAbsent
from vqvae_fast.bench import search
from vqvae_fast.cli import main
# Compiling takes minutes, and needs no package.
search.SEARCH_PEERS = tuple(p for p in search.SEARCH_PEERS if "compile" not in p.name)
results = []
for arguments in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as exit:
            results.append([exit.code, out.getvalue(), err.getvalue()])
json.dump([results, sorted(absent & set(sys.modules))], sys.stdout)
"""


class Result(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements bring, by their canonical names."""
    found: set[str] = set()
    pending = [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in found:
            found.add(name)
            try:
                pending += map(Requirement, requires(name) or ())
            except PackageNotFoundError:  # nothing that is not installed can be imported
                continue
    return found


def run_with(requirements: Iterable[str], *commands: list[object]) -> list[Result]:
    """Run the commands in one process that has these requirements only."""
    present = closure(requirements)
    absent = [
        module
        for module, distributions in packages_distributions().items()
        if module != "vqvae_fast" and not present & set(map(canonicalize_name, distributions))
    ]
    assert {"matplotlib", "tqdm", "faiss", "sklearn", "skimage"} <= set(absent)
    texts = [[str(argument) for argument in command] for command in commands]
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        input=json.dumps([absent, texts]),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    results, imported = json.loads(child.stdout)
    assert imported == []
    return [Result(*result) for result in results]


@pytest.fixture(scope="module")
def base() -> list[str]:
    (line,) = re.findall(
        r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    return ast.literal_eval(line)


def test_commands_that_neither_train_nor_read_images_need_no_extra(base, tmp_path):
    codes = torch.randn(8, 4)
    torch.save({"vq.embedding.weight": codes}, tmp_path / "in.pt")
    info, convert, bench, help_, *others = run_with(
        base,
        ["info"],
        ["convert", tmp_path / "in.pt", tmp_path / "out.pt"],
        ["bench", "--shape", "128,40,8", "--rounds", "1", "--threads", "1"],
        ["--help"],
        ["train", "--steps", "1"],
        ["decode", "x.npz", "--run", "run", "-o", "out"],
    )
    assert [result.status for result in (info, convert, bench, help_)] == [0, 0, 0, 0]
    assert info.out.startswith(f"vqvae_fast {vqvae_fast.__version__}\n")
    assert torch.equal(vqvae_fast.load_quantizer(tmp_path / "out.pt").codebook, codes)
    assert "search: 128 vectors" in bench.out
    assert "FAISS search: faiss-cpu is not installed (pip install vqvae_fast[bench])" in bench.out
    assert "Train a VQ-VAE on images." in help_.out
    for name, result in zip(("train", "decode"), others, strict=True):
        assert result.status == 1
        assert re.fullmatch(
            rf"vqvae-fast: {name} needs \w+, which is not installed: "
            r"pip install vqvae_fast\[train\]\n",
            result.err,
        )


@pytest.mark.slow
def test_images_are_decoded_without_what_training_draws_with(base, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((10, 16, 16, 3)))
    small = [
        "--steps",
        "1",
        "--codebook-size",
        "8",
        "--dim",
        "4",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    run, codes, image = (tmp_path / name for name in ("run", "codes.npz", "image.png"))
    assert call("train", "--data", tmp_path / "x.npy", "--out", run, *small) == 0
    Image.new("RGB", (20, 12)).save(image)
    results = run_with(
        [*base, "pillow"],
        ["encode", image, "--run", run, "-o", codes],
        ["decode", codes, "--run", run, "-o", tmp_path / "back"],
        ["reconstruct", image, "--run", run, "-o", tmp_path / "again.png"],
        ["train", "--steps", "1"],
    )
    assert [result.status for result in results] == [0, 0, 0, 1]
    assert (tmp_path / "back" / "image.png").is_file()
    assert "vqvae-fast: train needs " in results[-1].err


# Imports torch, then the package, then its commands; says what each has loaded, and CPU seconds.
IMPORTS = """
import json, sys, time

def loads(names):
    before, begin = set(sys.modules), time.process_time()
    for name in names:
        __import__(name)
    return sorted(set(sys.modules) - before), time.process_time() - begin

commands = ["vqvae_fast.cli." + name for name in ("info", "bench", "convert")]
print(json.dumps([loads(names) for names in (["numpy", "torch"], ["vqvae_fast"], commands)]))
"""


@pytest.fixture(scope="module")
def imports():
    """(modules, CPU seconds) of torch, of the package and of three commands, imported in turn."""
    for _ in range(2):  # the first process may have to compile the package's files
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IMPORTS],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(child.stdout)


def foreign(modules):
    """The packages of these modules, but for those that come with Python and the one under test."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"vqvae_fast"}


def test_the_package_loads_nothing_beside_torch_and_numpy(imports):
    _, (modules, _), (of_commands, _) = imports
    assert "vqvae_fast.functional" in modules
    assert foreign(modules) <= {"torch"}
    # torch's compiler takes longer to import than all the rest.
    assert not {"torch._dynamo", "torch._inductor"} & set(modules)
    # No peer is loaded before it is measured.
    assert foreign(of_commands) <= {"click", "torch"}


def test_the_package_takes_little_of_the_time_that_torch_takes_to_import(imports):
    """Measured: 0.19 s, of which Python's garbage collector takes 0.08; torch takes 0.75 s."""
    (_, torch_seconds), (_, seconds), _ = imports
    assert seconds < max(0.3, 0.6 * torch_seconds)


def test_python_is_told_the_extra():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from vqvae_fast.training import load_model\n"
        "try:\n"
        "    from vqvae_fast.training import train\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == (
        "vqvae_fast.training.train needs matplotlib, which is not installed: "
        "pip install vqvae_fast[train]\n"
    )
