"""Runs Nsight Compute on two shapes, to find what limits each kernel of a call."""

import sys

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import Emit, Setting, Step

_DIMS = (64, 256)
_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "InstructionStats")
_CALL = (
    "import torch, vqvae_fast\n"
    "z, codebook = torch.randn(65536, {dim}).cuda(), torch.randn(8192, {dim}).cuda()\n"
    "vqvae_fast.nearest_code(z, codebook)\n"
    "torch.cuda.synchronize()\n"
    "torch.cuda.cudart().cudaProfilerStart()\n"
    "vqvae_fast.nearest_code(z, codebook)\n"
    "torch.cuda.synchronize()\n"
    "torch.cuda.cudart().cudaProfilerStop()\n"
)


def steps(setting: Setting) -> list[Step]:
    """Return a step for each shape; the whole output goes into a file of its own."""

    def profile(dim: int, emit: Emit) -> None:
        ncu = tool.find("ncu")
        if ncu is None:
            raise FileNotFoundError("ncu is neither in PATH nor in CUDA's folder")
        report = setting.out / f"ncu-D{dim}.csv"
        command = [ncu, "--profile-from-start", "off", "--csv", "--page", "details"]
        command += [argument for name in _SECTIONS for argument in ("--section", name)]
        call = [sys.executable, "-c", _CALL.format(dim=dim)]
        status, words = tool.run([*command, "--log-file", str(report), *call])
        emit(dim=dim, status=status, file=report.name, log=words)
        if status:
            raise RuntimeError(f"ncu ended with {status}: {words.splitlines()[-1:]}")

    if setting.rehearse:
        found = tool.find("ncu")
        return [Step("ncu", 10, lambda emit: emit(ncu=found is not None, profiled=False))]
    return [Step(f"D={dim}", 120, lambda emit, dim=dim: profile(dim, emit)) for dim in _DIMS]
