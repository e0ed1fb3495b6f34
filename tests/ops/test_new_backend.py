"""A backend is added with one folder in vqvae_fast/backends: nothing else is edited."""

import re
import shutil
from pathlib import Path

import pytest

import vqvae_fast

PACKAGE = Path(vqvae_fast.__file__).parent
MADE_UP = Path(__file__).parent / "made_up_backend"
# Every op, and what a user asks for by name: the answers are those of plain PyTorch.
USE = """
import torch, vqvae_fast
from vqvae_fast import backends
from vqvae_fast.backends import made_up
from vqvae_fast.backends.reference import ops as reference

z, codebook = torch.randn(40, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
wanted = reference.nearest_code(z, codebook)[0]
print("chosen", backends.chosen("cpu").name)
before = made_up.searches
assert torch.equal(vqvae_fast.nearest_code(z, codebook).indices, wanted)
assert torch.equal(vqvae_fast.nearest_code(z, codebook, backend="made_up").indices, wanted)
got = vqvae_fast.quantize(z, codebook)
assert torch.equal(got.indices, wanted) and torch.equal(got.quantized, codebook[wanted])
torch.autograd.grad(got.loss + got.quantized.sum(), (z, codebook))
assert vqvae_fast.segment_sum(z, got.indices, 9).counts.sum() == 40
residual = vqvae_fast.residual_nearest_code(z, codebook[None].expand(3, 9, 5))
assert torch.equal(residual.indices[:, 0], wanted)
vqvae_fast.VectorQuantizer(9, 5, learning="ema")(z.view(4, 10, 5, 1).movedim(2, 1))
print("searches", made_up.searches - before)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package with one folder more."""
    ignored = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(PACKAGE, tmp_path / "vqvae_fast", ignore=ignored)
    shutil.copytree(MADE_UP, copy / "backends" / "made_up", ignore=ignored)
    return copy


# Two searches, that of quantize, one for each stage, and that of the module.
SERVED = ["chosen made_up", f"searches {2 + 1 + 3 + 1}"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("request_", ["", "made_up"])
def test_it_serves_every_op(fresh_python, package, request_):
    done = fresh_python.run(USE, package=package, VQVAE_FAST_BACKEND=request_)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == SERVED


@pytest.mark.slow
def test_another_is_still_served_by_name(fresh_python, package):
    done = fresh_python.run(USE, package=package, VQVAE_FAST_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["chosen reference", "searches 1"]  # the one by argument


def test_it_is_listed(fresh_python, package):
    info = "from vqvae_fast.cli import main; main(['info'])"
    done = fresh_python.run(info, package=package)
    assert " -> Made up: one line of PyTorch" in done.stdout, done.stderr
    problem = "import vqvae_fast.settings as s; print(s.current.problem)"
    wrong = fresh_python.run(problem, package=package, VQVAE_FAST_BACKEND="x")
    assert re.search(r"one of \b.*\bmade_up\b.*, got 'x'", wrong.stdout), wrong.stdout
