"""Never N x K: the peak of the process is measured, in a process of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_python import FreshPython
from kernels import INSTRUCTION_SETS

import vqvae_fast

PACKAGE = Path(vqvae_fast.__file__).parent
MIB = 1 << 20
MEASURE = """
import sys, torch, vqvae_fast
from vqvae_fast import _native
from vqvae_fast.backends.reference import ops as reference
torch.set_num_threads(1)
name, rows, codes, dim, data, op = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:]
if name == "reference":
    call = getattr(reference, op)
else:
    _native.extension.set_cpu_isa(name)
    call = getattr(torch.ops.vqvae_fast, op)
make = torch.randn if data == "normal" else torch.zeros
z, codebook = make(rows, dim), make(codes, dim)
if op == "nearest_codes":
    call = lambda z, codebook, op=call: op(z, codebook, 20)
call(z[:64], codebook[:64])  # what the first call alone allocates is not the op's

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
result = call(z, codebook)
print(status("VmHWM") - before)
"""


@pytest.fixture
def peak(fresh_python: FreshPython) -> Callable[..., int]:
    """Bytes by which the peak rose, results included."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell the peak of a process")

    def run(*arguments: object) -> int:
        done = fresh_python.run(MEASURE, *arguments, package=PACKAGE, warn="ignore")
        if "clear_refs" in done.stderr:
            pytest.skip("this system does not let a process reset its peak")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return run


@pytest.mark.quick(2)
@pytest.mark.parametrize("data", ["normal", "zeros"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_kernels(peak, isa, data):
    """N x K would be 1 GiB of float32. All-equal codes make every one of them a candidate."""
    rows, codes, dim = (16384, 16384, 8) if data == "normal" else (1024, 16384, 8)
    packed, results = codes * (dim + 1) * 4, rows * (8 + 4)
    assert peak(isa, rows, codes, dim, data, "nearest_code") < packed + results + 16 * MIB


@pytest.mark.quick(2)
@pytest.mark.parametrize("data", ["normal", "zeros"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_k_nearest_codes(peak, isa, data):
    """N x K would be 1 GiB of float32. Of equal codes 20 are enough."""
    rows, codes, dim = (16384, 16384, 8) if data == "normal" else (1024, 16384, 8)
    packed, results = codes * (dim + 1) * 4, 20 * rows * (8 + 4)
    assert peak(isa, rows, codes, dim, data, "nearest_codes") < packed + results + 16 * MIB


def test_k_nearest_codes_of_the_reference(peak):
    assert peak("reference", 8192, 16384, 4, "normal", "nearest_codes") < 256 * MIB


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[:1])
def test_a_large_codebook_is_packed_once(peak, isa):
    rows, codes, dim = 64, 1 << 18, 32
    packed = codes * (dim + 1) * 4
    assert peak(isa, rows, codes, dim, "normal", "nearest_code") < packed + 16 * MIB


def test_reference(peak):
    """In float64 N x K would be 1 GiB."""
    assert peak("reference", 8192, 16384, 4, "normal", "nearest_code") < 256 * MIB


@pytest.mark.slow
def test_reference_where_every_code_is_a_candidate(peak):
    assert peak("reference", 512, 16384, 4, "zeros", "nearest_code") < 512 * MIB


@pytest.mark.slow
def test_reference_with_one_code(peak):
    """No chunk of rows is as large as z itself."""
    assert peak("reference", 1 << 20, 1, 64, "normal", "nearest_code") < 300 * MIB
