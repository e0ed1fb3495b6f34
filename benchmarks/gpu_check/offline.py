"""Compiles the kernels of a launch for a GPU that need not be present."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vqvae_fast.backends.triton.launch import forget_plans

# Each target has the largest shared memory, in bytes, that a launch may request for one program.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_86": (GPUTarget("cuda", 86, 32), 99 * 1024),
    "sm_89": (GPUTarget("cuda", 89, 32), 99 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "sm_120": (GPUTarget("cuda", 120, 32), 99 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
# The target whose bars are judged, and on which the kernels have been measured.
MAIN_TARGET = "sm_90"


class Launch(NamedTuple):
    """A kernel that was compiled for a launch."""

    name: str
    constants: dict[str, Any]
    num_warps: int
    compiled: Any


class _Driver:
    """Replaces the GPU's driver: names the target, and has one device and stream."""

    def __init__(self, target: GPUTarget):
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # kernels are cached by device

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextlib.contextmanager
def compiled_for(target: GPUTarget) -> Iterator[list[Launch]]:
    """Launches compile for ``target`` and run nothing; they are collected, each kind once."""
    launches: dict[int, Launch] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        constants = {p.name: kwargs.get(p.name) for p in self.params if p.is_constexpr}
        name = self.fn.__name__.strip("_").removesuffix("_kernel")
        launches[id(compiled)] = Launch(name, constants, compiled.metadata.num_warps, compiled)
        collected[:] = launches.values()
        # Return nothing, so that no plan keeps a kernel to launch it directly.

    collected: list[Launch] = []
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Driver(target))
    JITFunction.run = compile_only
    forget_plans()
    try:
        yield collected
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = before
        forget_plans()
