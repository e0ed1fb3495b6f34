"""Watches Triton's launches: the kernels with their registers, and the numbers they count."""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from vqvae_fast.backends import triton as kernels
from vqvae_fast.backends.triton.launch import forget_plans


class Launch(NamedTuple):
    """A kernel's name and its arguments by name."""

    kernel: str
    arguments: dict[str, Any]


@contextlib.contextmanager
def watched() -> Iterator[list[Launch]]:
    """Collect the launches, which meanwhile all go through Triton's own launch."""
    forget_plans()  # a plan that has launched before does not call Triton again
    found: list[Launch] = []
    kept = {kind: kind.run for kind in (JITFunction, InterpretedFunction)}

    def watching(run: Any) -> Any:
        def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(self.arg_names, args, strict=False))
            found.append(Launch(self.fn.__name__, given | kwargs))
            return run(self, *args, **kwargs)

        return watch

    for kind, run in kept.items():
        kind.run = watching(run)
    try:
        yield found
    finally:
        for kind, run in kept.items():
            kind.run = run


def counters(launches: list[Launch]) -> dict[str, list[int]]:
    """Return the final values of all counters: the int32 tensors that kernels name num_...

    A counter of several kernels counts once.
    """
    tensors: dict[tuple[str, int], Tensor] = {}
    for launch in launches:
        for name, value in launch.arguments.items():
            if name.startswith("num_") and isinstance(value, Tensor):
                tensors[name, value.data_ptr()] = value
    return {name: tensor.flatten().tolist() for (name, _), tensor in tensors.items()}


class Loaded(NamedTuple):
    """A compiled kernel on the device, with the registers and spilled values of a thread."""

    kernel: str
    registers: int
    spilled: int


def loaded() -> list[Loaded]:
    """Return the package's kernels that this process has launched."""
    found = []
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if not isinstance(value, JITFunction) or value.fn.__module__ != module.name:
                continue
            for caches in value.device_caches.values():
                for compiled in caches[0].values():
                    registers, spilled = (
                        getattr(compiled, n, None) for n in ("n_regs", "n_spills")
                    )
                    if registers is not None:
                        found.append(Loaded(value.fn.__name__, registers, spilled))
    return found
