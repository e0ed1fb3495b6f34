"""The device of the parts: the GPU, or the CPU for a rehearsal."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import NO_DEVICE, Gpu
from benchmarks.gpu_first.step import Setting


class Rehearsed(Gpu):
    """The CPU in the place of the GPU; its times mean nothing."""

    def __init__(self) -> None:
        self.device, self.name = torch.device("cpu"), "rehearsal on the CPU"

    def seconds(self, call: Callable[[], Any]) -> float:
        """Time one call."""
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def seconds_in_graph(self, call: Callable[[], Any]) -> float:
        """Time one call, because nothing can be captured."""
        return self.seconds(call)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Return 0, because nothing is counted."""
        call()
        return 0

    def release(self) -> None:
        """Do nothing, because nothing is kept."""


def device_of(setting: Setting) -> Gpu:
    """Return the device on which the parts measure.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if setting.rehearse:
        return Rehearsed()
    if not torch.cuda.is_available():
        raise RuntimeError(NO_DEVICE)
    return Gpu()


def synchronize(gpu: Gpu) -> None:
    """Wait for the device, so that its errors belong to the step that made them."""
    if gpu.device.type == "cuda":
        torch.cuda.synchronize(gpu.device)
