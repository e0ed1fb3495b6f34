"""Measures what a GPU search costs the host: ``python -m benchmarks.host_time``, on any machine.

Kernels are compiled for an H100, which need not be present, and each launch goes to a driver that
does nothing. Everything else in a call runs: checks, dispatcher, plan, allocations and, if Triton
launches in its own way, its choice of the compiled kernel. Tensors are in the CPU's memory, whose
allocator replaces CUDA's. torch's own arithmetic, a fill and the loss, runs there, so N is small.
The figures do not include the driver's own time for a launch, some 2 us and more.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import vqvae_fast
from benchmarks import command_line
from vqvae_fast.backends import Kernels, choice, dispatch
from vqvae_fast.backends.triton import launch, search
from vqvae_fast.backends.triton import ops as kernels
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape, gaussian

H100 = GPUTarget("cuda", 90, 32)
_PROCESSORS = 132
SHAPES = (
    Shape(256, 1024, 64),
    Shape(2048, 1024, 64),
    Shape(16, 8192, 64),
    Shape(2048, 8192, 64),
    Shape(256, 1024, 256),
)
QUICK = (Shape(64, 64, 16),)
_CALLS = 200


class Launcher:
    """Replaces Triton's launcher for a compiled kernel, and launches nothing.

    Attributes:
        count: launches so far.
        last: the arguments of the last launch: grid, stream, function, three of Triton's own and
            two hooks, then the kernel's arguments.
    """

    count = 0
    last: tuple[object, ...] = ()

    def __init__(self, source: object, metadata: object):
        pass

    def __call__(self, *arguments: object) -> None:
        """Count the launch and store its arguments."""
        Launcher.count += 1
        Launcher.last = arguments


class _Utilities:
    """The functions of a driver that Triton calls when it loads a kernel."""

    def load_binary(self, *arguments: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class _Driver:
    """Replaces CUDA's driver: one H100, and one stream."""

    launcher_cls = Launcher
    utils = _Utilities()

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def made_up_h100() -> Iterator[type[Launcher]]:
    """Let the Triton kernels serve CPU tensors and launch nothing; yields the launch counter."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("needs Triton's compiler, but TRITON_INTERPRET=1 asks for no compiling")
    before = triton.runtime.driver._active
    library = torch.library.Library("vqvae_fast", "IMPL")
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about the override, and Triton's about its next version
        for name in ("nearest_code", "quantize"):
            library.impl(name, dispatch.chosen_kernel(name), "CPU", allow_override=True)
        stack.callback(library._destroy)
        stack.enter_context(mock.patch.object(choice, "kernels", return_value=Kernels.of(kernels)))
        stack.enter_context(mock.patch.object(search, "multiprocessors", return_value=_PROCESSORS))
        triton.runtime.driver.set_active(_Driver())
        stack.callback(setattr, triton.runtime.driver, "_active", before)
        stack.callback(launch.forget_plans)
        launch.forget_plans()
        yield Launcher


def microseconds(call: Callable[[], object], rounds: int) -> list[float]:
    """Return a call's time in each round, after a few calls that compile."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(_CALLS):
            call()
        times.append((time.perf_counter() - begin) / _CALLS * 1e6)
    return times


def _as_triton_launches(call: Callable[[], object], rounds: int) -> list[float]:
    with mock.patch.object(launch, "_can_launch_directly", return_value=False):
        launch.forget_plans()
        times = microseconds(call, rounds)
    launch.forget_plans()
    return times


def _plan(z: Tensor, codebook: Tensor) -> launch.Plan:
    """Returns the plan of the kernels' quantize."""
    shapes = (z.shape, z.stride(), z.dtype, codebook.shape, codebook.stride(), z.stride())
    plan, *_ = search.planned(*shapes, torch.float16, z.device, None, False)
    return plan


def _allocations(z: Tensor, codebook: Tensor) -> None:
    """Makes the allocations of a call of the kernels' quantize."""
    search._results(z)
    torch.empty_like(z)
    _plan(z, codebook).arena(z.device)


def compare(shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the entry of a shape: microseconds of a call for each part, round by round."""
    z, codebook, _ = gaussian(shape)
    parts: dict[str, Callable[[], object]] = {
        "vqvae_fast.quantize": lambda: vqvae_fast.quantize(z, codebook),
        "vqvae_fast.nearest_code": lambda: vqvae_fast.nearest_code(z, codebook),
        "kernels.quantize": lambda: kernels.quantize(z, codebook),
        "allocations and fill": lambda: _allocations(z, codebook),
    }
    times = {name: microseconds(call, rounds) for name, call in parts.items()}
    times["kernels.quantize, as Triton launches"] = _as_triton_launches(
        parts["kernels.quantize"], rounds
    )
    kernels.quantize(z, codebook)
    before = Launcher.count
    kernels.quantize(z, codebook)
    launches = Launcher.count - before + bool(_plan(z, codebook).zeroed_bytes)
    return {"shape": shape._asdict(), "launches": launches, "microseconds": times}


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table, with a row for each shape."""
    names = list(record["results"][0]["microseconds"])
    rows = []
    for entry in record["results"]:
        cells = [str(entry["shape"][letter]) for letter in "nkd"]
        cells.append(str(entry["launches"]))
        for name in names:
            times = entry["microseconds"][name]
            spread = quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
            cells.append(f"{median(times):.0f} ({spread[0]:.0f}-{spread[2]:.0f})")
        rows.append(cells)
    return (
        tables.heading(record)
        + "Host time of a call in microseconds, with each launch replaced by nothing: median "
        f"(quartiles) of {record['rounds']} rounds. Kernels are compiled for an H100 that is not "
        "there; tensors lie in the CPU's memory. `kernels.quantize` is what remains behind the "
        "checks, autograd and the dispatcher; the last column is the same call where Triton "
        f"{triton.__version__} chooses the compiled kernel anew for each launch.\n\n"
        + tables.table(["N", "K", "D", "launches, the fill's too", *names], rows)
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.host_time", __doc__, rounds=15)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round")
    options = parser.parse_args(given)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    rounds = 1 if options.quick else options.rounds
    with made_up_h100():
        entries = [compare(shape, rounds) for shape in shapes]
    record = environment.describe("benchmarks.host_time", torch.get_num_threads())
    record |= {"rounds": rounds, "results": entries}
    command_line.publish(record, markdown(record), options, "host_time")
    return record


if __name__ == "__main__":
    main()
