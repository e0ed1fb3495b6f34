"""The parts of a first contact, rehearsed in Triton's interpreter, in processes of their own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks.gpu_first import step
from vqvae_fast.bench.data import Shape, gaussian

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]

# The probe where the interpreter multiplies as a unit does, whose name is the argument.
AS_A_UNIT = """
import sys
from pathlib import Path

import triton.runtime.interpreter as interpreter

from benchmarks.gpu_first.parts import probe
from benchmarks.gpu_first.step import Setting
from benchmarks.matrix_unit import UNITS, Unit, matrix_product

unit = UNITS.get(sys.argv[1], Unit(16, 17))


def create_dot(self, a, b, d, *rest, **named):
    product = matrix_product(a.data, b.data, d.data, unit)
    return interpreter.TensorHandle(product, d.dtype.scalar)


interpreter.InterpreterBuilder.create_dot = create_dot
rows = []
for step in probe.steps(Setting(Path(), rehearse=True)):
    try:
        step.run(lambda **row: rows.append(row))
    except ArithmeticError as error:
        print(error)
print(rows[-1]["models_that_fit_all"], max(r["largest_loss"] for r in rows[:-1]))
"""


def probed(unit: str) -> str:
    variables = {"TRITON_INTERPRET": "1", "VQVAE_FAST_BACKEND": "triton"}
    done = subprocess.run(
        [sys.executable, "-c", AS_A_UNIT, unit],
        cwd=step.ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("unit", ["volta", "ampere", "hopper"])
def test_the_probe_knows_a_unit_by_its_sums(unit):
    text = probed(unit)
    assert text.startswith(f"['{unit}'] ")
    assert 1 < float(text.split()[-1]) < 64


def test_the_probe_says_where_a_unit_loses_more_than_the_bound_allows():
    text = probed("a unit of 17 bits")
    assert "the bound allows 64" in text
    assert text.splitlines()[-1].startswith("[] ")
    assert float(text.split()[-1]) > 64


def test_a_rehearsal(tmp_path):
    """Every part that needs no compiler; what is not there is named, and nothing is wrong."""
    z, codebook, _ = gaussian(Shape(60, 80, 8))
    import numpy as np

    np.savez(tmp_path / "trained.npz", z=z.numpy(), codebook=codebook.numpy())
    names = ["versions", "triage", "probe", "times", "counters", "sweep", "peers", "profile"]
    command = [sys.executable, "-m", "benchmarks.gpu_first", "--rehearse", "--minutes", "9"]
    command += ["--part", *names, "--out", str(tmp_path / "out"), "--wheels", str(tmp_path)]
    done = subprocess.run(command, cwd=step.ROOT, capture_output=True, text=True)
    record = json.loads((tmp_path / "out" / "first.json").read_text())
    text = (tmp_path / "out" / "first.md").read_text()
    assert done.returncode == 0, text
    assert text.startswith("# REHEARSAL")
    assert list(record["parts"]) == names
    steps = {name: record["parts"][name]["steps"] for name in names}
    assert all(row["wrong"] == 0 for s in steps["triage"] for row in s["rows"])
    assert any("subnormals" in s["name"] for s in steps["triage"])
    (trained,) = [s for s in steps["counters"] if s["name"].startswith("trained")]
    assert {"num_listed[0]", "num_listed[1]"} <= {row.get("counter") for row in trained["rows"]}
    found = json.loads((tmp_path / "out" / "tiles.json").read_text())
    assert list(found["architectures"]["interpreter"]["float16"]) == ["16"]
