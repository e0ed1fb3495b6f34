"""Compiles the kernels of a launch for a GPU that need not be present."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
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


class Specialization(NamedTuple):
    """What Triton compiles a kernel for.

    Attributes:
        kernel: the kernel's name.
        key: tells it from the kernel's other specializations for a target.
        values: of each parameter its constant, or its type and alignment; and the launch options.
    """

    kernel: str
    key: str
    values: frozenset[tuple[str, str]]


class _Driver:
    """Replaces the GPU's driver: names the target, and has one device and stream."""

    def __init__(self, target: GPUTarget, device: str):
        self._target = target
        self._device = device

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return self._device  # kernels are cached by device

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextlib.contextmanager
def compiled_for(
    target: GPUTarget, wanted: Collection[Specialization] | None = None
) -> Iterator[list[Launch]]:
    """Launches compile for ``target`` and run nothing; they are collected, each kind once.

    wanted: all others are neither compiled nor collected; None wants all.
    """
    launches: dict[int, Launch] = {}
    collected: list[Launch] = []

    def is_left_out(specialization: Specialization) -> bool:
        return wanted is not None and specialization not in wanted

    def collect(kernel: Any, compiled: Any, kwargs: dict[str, Any]) -> None:
        constants = {p.name: kwargs.get(p.name) for p in kernel.params if p.is_constexpr}
        name = _name(kernel.fn.__name__)
        launches[id(compiled)] = Launch(name, constants, compiled.metadata.num_warps, compiled)
        collected[:] = launches.values()

    with _driven(_Driver(target, str(target)), is_left_out, collect):
        yield collected


@contextlib.contextmanager
def specialized_for(target: GPUTarget) -> Iterator[list[Specialization]]:
    """Launches compile nothing; what they would compile is collected, for every launch."""
    collected: list[Specialization] = []

    def note(specialization: Specialization) -> bool:
        collected.append(specialization)
        return True

    # Triton does not ask the hook about a kernel that this device has, so this one gets none.
    with _driven(_Driver(target, f"{target}, without kernels"), note):
        yield collected


@contextlib.contextmanager
def _driven(
    driver: _Driver,
    is_left_out: Callable[[Specialization], bool],
    collect: Callable[[Any, Any, dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Launches run nothing and go to a driver.

    Args:
        driver: in the place of the GPU's.
        is_left_out: whether a specialization that the device lacks is not compiled.
        collect: gets each launch's kernel, what it was compiled to, and its constants and options.
    """
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        if compiled is not None and collect is not None:
            collect(self, compiled, kwargs)
        # Return nothing, so that no plan keeps a kernel to launch it directly.

    def hook(*, key: str, fn: Any, compile: dict[str, Any], **others: Any) -> bool:
        return is_left_out(_specialization(_name(fn.name), key, compile["specialization_data"]))

    before, hook_before = triton.runtime.driver._active, triton.knobs.runtime.jit_cache_hook
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.jit_cache_hook = hook
    JITFunction.run = compile_only
    forget_plans()
    try:
        yield
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = before
        triton.knobs.runtime.jit_cache_hook = hook_before
        forget_plans()


def _name(function: str) -> str:
    return function.strip("_").removesuffix("_kernel")


def _specialization(kernel: str, key: str, data: str) -> Specialization:
    """Reads what Triton says of a specialization, in JSON."""
    said = json.loads(data)
    values = dict(said["signature"])
    names = list(values)
    for (place, *_), attributes in zip(said["attrs_keys"], said["attrs_vals"], strict=True):
        values[names[place]] = f"{values[names[place]]} {attributes}"
    for (place, *_), constant in zip(said["constant_keys"], said["constant_vals"], strict=True):
        values[names[place]] = repr(constant)
    values |= {option: str(value) for option, value in said["options"].items()}
    return Specialization(kernel, key, frozenset(values.items()))
