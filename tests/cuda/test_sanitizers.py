"""The CUDA kernels' source among the address and the thread sanitizer, on its host stand-in.

A block's threads are real threads there. So that a run without findings means something, the
thread sanitizer must also find the race in a kernel from which a barrier was taken.
"""

import subprocess

import host_kernels
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(host_kernels.why_not() is not None, reason=str(host_kernels.why_not())),
]
DRIVER = host_kernels.HOST / "driver.cpp"
SORT = [source for source in host_kernels.SOURCES if source.stem == "sort"]


def run(tmp_path, *flags):
    """Build the driver with these flags, and run it."""
    flags = ("-O1", "-g1", "-DHOST_CUDA_THREADS", "-fno-omit-frame-pointer", *flags)
    host_kernels.compile_program(DRIVER, tmp_path / "driver", *flags, sources=SORT)
    return subprocess.run(
        # Address space layouts with more random bits than the sanitizer knows stop it.
        ["setarch", "-R", tmp_path / "driver"],
        capture_output=True,
        text=True,
        timeout=300,
        env={"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1"},
    )


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_findings(tmp_path, sanitizers):
    process = run(tmp_path, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout == "all right\n"
    assert process.stderr == ""


def test_a_missing_barrier_is_found(tmp_path):
    process = run(tmp_path, "-fsanitize=thread", "-DVQVAE_FAST_TEST_WITHOUT_BARRIER")
    assert process.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in process.stderr
