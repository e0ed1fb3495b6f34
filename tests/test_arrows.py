"""Imports inside the package run down only."""

import ast
from pathlib import Path

import pytest

import vqvae_fast

ROOT = Path(vqvae_fast.__file__).parent
# From the bottom up: a module may import from its own part and from the rows before it.
ROWS = [
    ("_version", "regular_files", "stride_order", "dtypes", "atomic", "extras"),
    ("tracing", "formulas"),
    ("settings", "errors", "autocast"),
    ("_native",),
    ("backends",),
    ("ops",),
    ("autograd",),
    ("similarity", "packed"),
    ("functional",),
    ("distributed",),
    ("clustering",),
    ("agreement", "warming"),
    ("nn/codebook",),
    ("nn/steps",),
    ("nn/drop_in", "nn/vqvae"),
    ("nn",),
    ("sharded", "recipes"),
    ("checkpoints",),
    ("acceleration",),
    ("models",),
    ("training",),
    ("",),  # the package's own names
    ("bench",),
    ("cli",),
]
HEIGHT = {name: height for height, row in enumerate(ROWS) for name in row}


def place_of(module):
    """The part of the package that a module lies in, by the longest name that fits."""
    path = module.removeprefix("vqvae_fast").removeprefix(".").replace(".", "/")
    fitting = (name for name in HEIGHT if f"{path}/".startswith(f"{name}/") or name == path)
    return max(fitting, key=len, default=None)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vqvae_fast"):
            for name in node.names:
                inner = ROOT.parent / f"{node.module}.{name.name}".replace(".", "/")
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{node.module}.{name.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("vqvae_fast"))


FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def module_of(path):
    parts = [p for p in path.with_suffix("").parts if p != "__init__"]
    return ".".join(["vqvae_fast", *parts])


def test_every_module_has_its_place():
    assert not [str(path) for path in FILES if place_of(module_of(path)) is None]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_import_runs_up(path):
    place = place_of(module_of(path))
    others = {m: place_of(m) for m in imported(ROOT / path) if place_of(m) != place}
    assert not [m for m, other in others.items() if HEIGHT[other] >= HEIGHT[place]]
