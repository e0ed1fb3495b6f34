"""Importing the package does not import torch's compiler; what it needs of it, it does itself."""

import subprocess
import sys

import torch

from vqvae_fast.tracing import called_while_tracing

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "triton")


def test_the_mark_is_that_of_torch():
    def ours():
        return 3

    def theirs():
        return 3

    assert vars(called_while_tracing(ours)) == vars(torch.compiler.assume_constant_result(theirs))
    assert vars(ours)


def test_import_leaves_the_compiler_alone():
    script = f"import sys, vqvae_fast; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, "[]", "")
