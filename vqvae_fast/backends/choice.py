"""Chooses the backend that serves a call, and says why.

Each backend says whether it can serve tensors on a device, and gives the reason; of those that can,
the one with the highest priority is chosen. A backend that is asked for by name
(:mod:`vqvae_fast.settings`) gives the same answer. If it cannot run, the call raises an error
instead of using a slower backend.
"""

import functools
import importlib

import torch

from vqvae_fast import _native, settings
from vqvae_fast.backends.backend import Availability, Backend, Kernels
from vqvae_fast.settings import UnknownSettingError, UnmetRequestError


@functools.cache
def by_name() -> dict[str, Backend]:
    """Every backend by its name, in the order in which they are tried."""
    modules = [importlib.import_module(f"vqvae_fast.backends.{n}") for n in settings.BACKENDS]
    found: list[Backend] = [module.backend for module in modules]
    return {b.name: b for b in sorted(found, key=lambda b: b.priority, reverse=True)}


def check(name: str, device: torch.device | str) -> Availability:
    """Whether the backend of this name can serve tensors on a device, and why.

    Raises:
        ValueError: there is no backend of this name.
    """
    if name not in by_name():
        raise ValueError(f"backend must be one of {', '.join(by_name())}, got {name!r}")
    return by_name()[name].check(torch.device(device))


def backends(device: torch.device | str) -> list[Availability]:
    """Every backend with its reason, in the order in which they are tried."""
    return [check(name, device) for name in by_name()]


def chosen(device: torch.device | str) -> Availability:
    """The backend that serves tensors on a device: the requested one, or the first that can.

    Raises:
        ValueError: a setting has a value that has no meaning.
        RuntimeError: what was asked for by name cannot run there.
    """
    device, asked = torch.device(device), settings.current
    if asked.problem:
        raise UnknownSettingError(asked.problem)
    isa = asked.cpu_isa if device.type == "cpu" else None
    if isa is not None and _native.isa_problem:
        raise UnknownSettingError(_native.isa_problem)
    if isa is not None and not (cpu := check("cpu", device)).available:
        raise UnmetRequestError(f"VQVAE_FAST_CPU_ISA={isa} needs the C++ kernels, but {cpu.reason}")
    if asked.backend is not None and device.type in by_name()[asked.backend].devices():
        found = check(asked.backend, device)
        if not found.available:
            raise UnmetRequestError(f"VQVAE_FAST_BACKEND={asked.backend}, but {found.reason}")
        return found
    return next(found for found in backends(device) if found.available)


@functools.cache
def kernels(device: torch.device, name: str | None = None) -> Kernels:
    """The ops of the chosen backend, or of the one with this name; the choice is made once.

    Raises:
        ValueError: there is no backend of this name, or :func:`chosen` raises it.
        RuntimeError: it cannot run on this device.
    """
    if name is None:
        name = chosen(device).name
    elif not (found := check(name, device)).available:
        raise UnmetRequestError(f"backend={name!r}, but {found.reason}")
    return by_name()[name].kernels()
