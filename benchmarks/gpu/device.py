"""Measures on the device: times, memory and the device's limits."""

import gc
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from vqvae_fast import backends
from vqvae_fast.bench import environment

NO_DEVICE = "no CUDA device: torch.cuda.is_available() is false, and nothing was measured"
# do_bench repeats a call for this many milliseconds before and while it measures.
_WARM_UP_MS, _MEASURE_MS = 10, 40
# Longer calls are timed once in a turn, because do_bench would make eight of them.
_LONG_SECONDS = 0.25
_GIB = 1 << 30
_DISTRIBUTIONS = ("torch", "triton", "flash-kmeans", "vector-quantize-pytorch")


def why_not() -> str | None:
    """Return why there is no device to measure on, or None."""
    return None if torch.cuda.is_available() else NO_DEVICE


class Gpu:
    """The current CUDA device. Only this class needs one."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Take a turn: the median of do_bench, which empties the L2 cache before every call."""
        from triton.testing import do_bench

        once = self._once(call)
        if once > _LONG_SECONDS:
            return once
        milliseconds = do_bench(call, warmup=_WARM_UP_MS, rep=_MEASURE_MS, return_mode="median")
        return 1e-3 * float(milliseconds)

    def seconds_in_graph(self, call: Callable[[], Any]) -> float:
        """Time the call replayed from a CUDA graph, with a warm L2 cache.

        The time is the GPU's alone, without Python and launches.
        """
        from triton.testing import do_bench_cudagraph

        return 1e-3 * float(do_bench_cudagraph(call, return_mode="median"))

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Return the peak of torch's allocator during a call minus its use before."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """Free the memory that the last contest left in torch's pools."""
        gc.collect()
        torch.cuda.empty_cache()

    def limits(self, size: int = 8192) -> dict[str, float]:
        """Measure the device's rates: products of size x size matrices, and copies of 1 GiB."""
        a, b = torch.randn(2, size, size, device=self.device)
        operations = 2.0 * size**3
        measured = {}
        for name, dtype, precision in (
            ("bfloat16_tflops", torch.bfloat16, "highest"),
            ("float16_tflops", torch.float16, "highest"),
            ("tf32_tflops", torch.float32, "high"),
            ("float32_tflops", torch.float32, "highest"),
        ):
            left, right = a.to(dtype), b.to(dtype)
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            try:
                seconds = self.seconds(lambda left=left, right=right: left @ right)
            finally:
                torch.set_float32_matmul_precision(before)
            measured[name] = operations / seconds / 1e12
        block = torch.empty(_GIB * size**2 // 8192**2, dtype=torch.uint8, device=self.device)
        other = torch.empty_like(block)
        seconds = self.seconds(lambda: other.copy_(block))
        measured["copy_gb_per_s"] = 2.0 * len(block) / seconds / 1e9
        return measured

    def describe(self) -> dict[str, object]:
        """Return the head of the results file: that of a CPU's, and the GPU."""
        about = torch.cuda.get_device_properties(self.device)
        return environment.describe("benchmarks.gpu", torch.get_num_threads()) | {
            "machine": environment.device_slug(self.name),
            "gpu": {
                "name": self.name,
                "compute_capability": f"{about.major}.{about.minor}",
                "multiprocessors": about.multi_processor_count,
                "memory_gib": round(about.total_memory / _GIB, 1),
                "cuda": torch.version.cuda,
                **_driver(f"GPU-{about.uuid}"),
            },
            "backends": {b.name: b.reason for b in backends.backends(self.device)},
            "chosen_backend": backends.chosen(self.device).name,
            "versions": environment.versions(_DISTRIBUTIONS),
        }

    def _once(self, call: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * begin.elapsed_time(end)


def _driver(uuid: str) -> dict[str, str]:
    """Returns driver, power limit and highest clock of one GPU, if nvidia-smi reports them.

    The GPU is named by its UUID: CUDA_VISIBLE_DEVICES renumbers the devices for torch, but not for
    nvidia-smi.
    """
    fields = ("driver_version", "power.limit", "clocks.max.sm")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    done = subprocess.run(
        [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={uuid}"],
        capture_output=True,
        text=True,
    )
    values = [value.strip() for value in done.stdout.split(",")]
    if done.returncode != 0 or len(values) != len(fields):
        return {}
    return dict(zip(("driver", "power_limit", "highest_clock"), values, strict=True))
