"""Plans: the launches of a call, computed once for its shapes and repeated with few steps.

A plan is a list of kernel launches whose pointers are symbolic: each is an offset in bytes from the
start of one of the call's tensors, or of the *arena*, the one piece of memory that a call allocates
beside its results. Everything else about a launch (grid, numbers, constants) follows from shapes,
strides, types and device, so a plan can be kept for them.

Triton's own launch determines from every argument which compiled kernel to use, which takes about
25 us a kernel. A plan does this once, for each alignment of its tensors, and keeps the compiled
kernel, which Triton's tutorials launch as ``compiled[grid](*arguments)``.
"""

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor

_P = ParamSpec("_P")
_Plan = TypeVar("_Plan")
# The arena's place among a call's tensors.
ARENA = 0
# Bytes. For pointers that are multiples of it Triton compiles wide loads, for others narrow ones.
_ALIGNMENT = 16
# The number of plans that each op keeps, of the most recent shapes.
_PLANS_KEPT = 512
_caches: list[Any] = []
# The versions whose compiled kernels are known to be launched in this way, first and last. A later
# one is launched as Triton launches it.
_DIRECT = ((3, 5), (3, 9))


def kept(planned: Callable[_P, _Plan]) -> Callable[_P, _Plan]:
    """Decorates a function of shapes, strides, types and device: its plans are kept."""
    cached = functools.lru_cache(_PLANS_KEPT)(planned)
    _caches.append(cached)
    return cached  # type: ignore[return-value]


def forget_plans() -> None:
    """Forgets all plans: they are kept by device, not by the target that Triton compiles for."""
    for cached in _caches:
        cached.cache_clear()


class Pointer(NamedTuple):
    """An address that a call will have: ``offset`` bytes behind the start of a tensor.

    Attributes:
        operand: the tensor's place in the sequence of the call's tensors.
        dtype: of the elements there.
        offset: bytes.
        count: elements there, if they are a piece of a tensor of bytes; None for a whole tensor.
    """

    operand: int
    dtype: torch.dtype
    offset: int = 0
    count: int | None = None

    def tensor(self, operands: Sequence[Tensor]) -> Tensor:
        """The tensor at this address, as Triton's own launch takes it."""
        whole = operands[self.operand]
        if self.count is None:
            return whole
        end = self.offset + self.count * self.dtype.itemsize
        return whole[self.offset : end].view(self.dtype)


class Region:
    """A tensor of bytes, [bytes], of which pieces are taken one behind the other.

    Args:
        operand: the tensor's place in the sequence of the call's tensors.
    """

    def __init__(self, operand: int) -> None:
        self.operand = operand
        self.bytes_taken = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pointer:
        """The next piece."""
        count = prod(shape)
        pointer = Pointer(self.operand, dtype, self.bytes_taken, count)
        self.bytes_taken += aligned_bytes(count * dtype.itemsize)
        return pointer


def aligned_bytes(size: int) -> int:
    """The bytes that a piece of this size takes, so that the next one is aligned."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Launch(NamedTuple):
    """One launch: positional arguments, some of which are pointers, and constants by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def run(self, operands: Sequence[Tensor]) -> Any:
        """Launches as Triton does, which compiles; returns what that returns."""
        arguments = (a.tensor(operands) if isinstance(a, Pointer) else a for a in self.arguments)
        return self.kernel[self.grid](*arguments, **self.constants)


class _DirectLaunch:
    """A launch of a kernel that is compiled, which takes addresses."""

    def __init__(self, launch: Launch, compiled: Any):
        given = launch.arguments
        constants = launch.kernel.arg_names[len(given) :]
        self._values = [*given, *(launch.constants[name] for name in constants)]
        self._pointers = [
            (place, value.operand, value.offset)
            for place, value in enumerate(given)
            if isinstance(value, Pointer)
        ]
        self._launch = compiled[(*launch.grid, 1, 1)[:3]]

    def run(self, addresses: list[int], stream: Any) -> None:
        values = self._values.copy()
        for place, operand, offset in self._pointers:
            values[place] = addresses[operand] + offset
        self._launch(*values, stream=stream)


class Plan:
    """The launches of a call, in order, and the size of its arena."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.memory = Region(ARENA)
        self.zeroed_bytes = 0
        # The key is the remainder of each tensor's address modulo _ALIGNMENT.
        self._direct: dict[tuple[int, ...], list[_DirectLaunch] | None] = {}

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pointer:
        """Memory of the arena that is 0 before the first launch; to be asked for first."""
        assert self.zeroed_bytes == self.memory.bytes_taken
        pointer = self.empty(shape, dtype)
        self.zeroed_bytes = self.memory.bytes_taken
        return pointer

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pointer:
        """Memory of the arena that may hold anything."""
        return self.memory.take(shape, dtype)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Appends a launch."""
        self.launches.append(Launch(kernel, grid, arguments, constants))

    def arena(self, device: torch.device) -> Tensor:
        """The memory of one call; its beginning is 0."""
        arena = torch.empty(self.memory.bytes_taken, dtype=torch.uint8, device=device)
        if self.zeroed_bytes:
            arena[: self.zeroed_bytes].zero_()
        return arena

    def run(self, *tensors: Tensor) -> Tensor:
        """Launches all on the current stream of the tensors' device, which must be the current one.

        tensors: those that operands 1, 2, ... stand for. Returns the arena.
        """
        arena = self.arena(tensors[0].device)
        operands = (arena, *tensors)
        addresses = [t.data_ptr() for t in operands]
        key = tuple([address % _ALIGNMENT for address in addresses])
        direct = self._direct.get(key)
        if direct is None:
            compiled = [launch.run(operands) for launch in self.launches]
            if _can_launch_directly(compiled):
                self._direct[key] = list(map(_DirectLaunch, self.launches, compiled))
            return arena
        driver = triton.runtime.driver.active
        stream = driver.get_current_stream(driver.get_current_device())
        for launch in direct:
            launch.run(addresses, stream)
        return arena


def _can_launch_directly(compiled: list[Any]) -> bool:
    """Whether Triton's launches have returned kernels and its version is known."""
    first, last = _DIRECT
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    kernels = (isinstance(kernel, triton.compiler.CompiledKernel) for kernel in compiled)
    return first <= version <= last and all(kernels)
