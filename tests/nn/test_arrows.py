"""Imports between the folders of the quantizers run down only."""

import ast
from pathlib import Path

import pytest

import vqvae_fast

ROOT = Path(vqvae_fast.__file__).parent
# Each folder may import from those before it, and no folder from the two public ones above all.
FOLDERS = ("autograd", "nn/codebook", "nn/steps", "nn/drop_in", "nn/vqvae", "sharded")
ABOVE = ("nn", "recipes", "models", "checkpoints", "training", "cli", "bench")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def folder_of(module):
    """The folder that a module of this package lies in; None for another's."""
    if not module.startswith("vqvae_fast."):
        return None
    path = module.removeprefix("vqvae_fast.").replace(".", "/")
    return next((folder for folder in FOLDERS if path.startswith(f"{folder}/")), path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_import_runs_up(folder):
    allowed = FOLDERS[: FOLDERS.index(folder) + 1]
    forbidden = {*FOLDERS, *ABOVE, *(["functional"] if folder == "autograd" else [])} - {*allowed}
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    wrong = {
        f"{path.name}: {module}"
        for path in files
        for module in imported(path)
        if folder_of(module) in forbidden
    }
    assert not wrong


def test_recipes_import_nothing_that_uses_them():
    """The model, the readers of checkpoints and training all ask the recipes."""
    files = sorted((ROOT / "recipes").glob("*.py"))
    assert len(files) > 2
    above = {"models", "checkpoints", "training", "cli", "bench"}
    wrong = {
        f"{path.name}: {module}"
        for path in files
        for module in imported(path)
        if module.startswith("vqvae_fast.") and module.split(".")[1] in above
    }
    assert not wrong
