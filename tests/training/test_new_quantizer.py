"""A quantizer that can be trained is added with one file in vqvae_fast/recipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqvae_fast
from vqvae_fast import VQVAE, recipes
from vqvae_fast.errors import UserError
from vqvae_fast.training.codes import fingerprint

HERE, PACKAGE = Path(__file__).parent, Path(vqvae_fast.__file__).parent
# Runs each command in one process, since importing torch takes most of the time.
CHILD = """
import contextlib, io, json, sys
from vqvae_fast.cli import main
from vqvae_fast.training import pictures
for name in ("save_reconstructions", "save_curves", "save_usage"):
    setattr(pictures, name, lambda *arguments: None)  # drawing takes long
results = []
for arguments in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as exit:
            results.append([exit.code, out.getvalue()])
import vqvae_fast
quantizer = vqvae_fast.load_quantizer("converted.pt")
z = quantizer.decode(quantizer.encode(vqvae_fast.VQVAE(embedding_dim=6).pre_quantization_conv.weight
                                      .detach()[:, :4].reshape(1, 6, 2, 2)))
results.append([type(quantizer).__name__, list(z.shape)])
json.dump(results, sys.stdout)
"""


@pytest.fixture
def tree(tmp_path):
    """The package with made_up.py among the recipes; all other files are those of the package."""
    copy = tmp_path / "tree" / "vqvae_fast"
    copy.mkdir(parents=True)
    for entry in PACKAGE.iterdir():
        if entry.name not in ("recipes", "__pycache__"):
            (copy / entry.name).symlink_to(entry)
    (copy / "recipes").mkdir()
    for file in [*(PACKAGE / "recipes").glob("*.py"), HERE / "made_up.py"]:
        (copy / "recipes" / file.name).symlink_to(file)
    return copy.parent


def test_it_is_trained_resumed_used_and_converted(tree, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(256, size=(10, 16, 16, 3), dtype=np.uint8))
    pixels = rng.integers(256, size=(19, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    small = ["--codebook-size", "32", "--batch-size", "2", "--device", "cpu"]
    train = ["train", "--quantizer", "made_up", "--data", "x.npy", *small]
    run = "runs/x-made_up-1"
    of_run = ["--run", run, "-o"]
    commands = [
        ["train", "--help"],
        [*train, "--steps", "3"],
        ["train", "--resume", run, "--steps", "4"],
        ["reconstruct", "image.png", *of_run, "back.png"],
        ["encode", "image.png", *of_run, "codes.npz"],
        ["decode", "codes.npz", *of_run, "decoded"],
        ["convert", f"{run}/checkpoint.pt", "converted.pt"],
    ]
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        input=json.dumps(commands),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    *results, loaded = json.loads(child.stdout)
    assert [status for status, _ in results] == [0] * len(commands), child.stderr
    outputs = [out for _, out in results]
    assert "[ema|gradient|made_up]" in outputs[0]
    assert "made_up: stretches random codes." in " ".join(outputs[0].split())

    state = torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)
    assert state["config"]["quantizer"] == "made_up"
    assert state["model_config"]["quantizer"] == {"class": "StretchedCodes", "stretch": 0.5}
    assert state["model_config"]["embedding_dim"] == 6
    assert state["model"]["vector_quantization.stretch"] != 0.5  # it is trained
    (group,) = state["optimizer"]["param_groups"]
    assert group["lr"] == 3e-4 / 2  # the last step of four, two of which cool down

    for name in ("back.png", "decoded/image.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (30, 19)
    assert (tmp_path / "back.png").read_bytes() == (tmp_path / "decoded/image.png").read_bytes()
    assert outputs[-1].startswith("StretchedCodes(n_e=32, e_dim=6, beta=0.25, stretch=0.5)\n")
    assert loaded == ["StretchedCodes", [1, 6, 2, 2]]
    assert json.loads((tmp_path / run / "result.json").read_text())["step"] == 4


@pytest.fixture
def others(tmp_path, monkeypatch):
    """A folder whose files are recipes, too, in this process."""
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"vqvae_fast.recipes.{path.stem}", None)
        vars(recipes).pop(path.stem, None)


def test_a_file_without_a_recipe_is_told(others):
    (others / "empty.py").write_text("RECIPE = None\n")
    with pytest.raises(UserError, match=r"empty\.py must define RECIPE, a Recipe, got None"):
        recipes.load_recipe("empty")


def test_two_classes_of_one_name_are_told(others):
    text = (HERE / "made_up.py").read_text().replace("StretchedCodes", "VectorQuantizer")
    (others / "same.py").write_text(text)
    with pytest.raises(UserError, match="must have different names, got VectorQuantizer in"):
        VQVAE(4, 2, 0, 8, 2)


def test_the_fingerprint_of_computed_codes_does_not_depend_on_their_rounding(others, monkeypatch):
    """Two devices may compute a code with other last bits; a file of codes fits on both."""
    (others / "made_up.py").write_text((HERE / "made_up.py").read_text())
    model = VQVAE(4, 2, 0, 8, 2, quantizer={"class": "StretchedCodes"})
    quantizer = type(model.vector_quantization)
    before = fingerprint(model)
    with monkeypatch.context() as patch:
        rounded = property(lambda self: self.stretch * self.directions * (1 + 1e-6))
        patch.setattr(quantizer, "codebook", rounded)
        assert fingerprint(model) == before
    with torch.no_grad():
        model.vector_quantization.stretch += 1
    assert fingerprint(model) != before


def test_a_class_that_no_recipe_has_is_refused():
    with pytest.raises(ValueError, match="must be one of VectorQuantizer, got 'Linear'"):
        VQVAE(4, 2, 0, 8, 2, quantizer={"class": "Linear"})


def test_every_file_is_a_recipe_that_the_help_can_name():
    names = recipes.recipe_names()
    assert {"ema", "gradient"} <= set(names)
    assert names == sorted(names)
    for name in names:
        recipe = recipes.load_recipe(name)
        assert recipe.help
        assert not recipe.help.endswith(".")
        assert recipe.quantizer in recipes.quantizer_classes().values()
