"""compute-sanitizer over small calls: accesses outside of tensors, and races in shared memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Sizes off every block, and the paths for few rows, for long rows and for rows in doubt.
PROGRAM = """
import sys, torch
sys.path[:0] = sys.argv[1:]
from calls import CALLS
torch.manual_seed(0)
for rows, codes, dim in [(1, 301, 5), (70, 1030, 17), (133, 65, 64), (9, 33, 300)]:
    for spread in (1.0, 1e6):
        z, codebook = torch.randn(rows, dim).cuda(), torch.randn(codes, dim).cuda()
        codebook[codes // 2] *= spread
        for call in CALLS.values():
            call(z, codebook)
    CALLS["nearest_code"](z.double(), codebook.double())
torch.cuda.synchronize()
print("done")
"""


def sanitizer():
    """The tool on the path, or in the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for folder in [None, *(Path(home) / "bin" for home in homes if home)]:
        if found := shutil.which("compute-sanitizer", path=folder and str(folder)):
            return found
    pytest.skip("compute-sanitizer is neither on the path nor in CUDA_HOME/bin")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_nothing_is_found(cuda, served_by, tool):
    checked = [sanitizer(), "--tool", tool, "--error-exitcode", "99"]
    folders = [str(ROOT), str(Path(__file__).parent)]
    done = subprocess.run(
        [*checked, sys.executable, "-c", PROGRAM, *folders],
        # An allocation for each tensor: inside of torch's pools an overrun hits other tensors.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "done" in done.stdout
