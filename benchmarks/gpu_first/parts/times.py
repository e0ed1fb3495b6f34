"""Times the whole call in a graph and in eager mode, and each kernel beside its floor."""

import math
import time
from collections import defaultdict

import torch
from torch import Tensor

import vqvae_fast
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.goals import whole_call
from benchmarks.gpu_first.device import device_of, synchronize
from benchmarks.gpu_first.floors import estimate
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast.bench.data import Shape, gaussian

# The whole calls of the goals come first, then small work, in which the host's time matters.
_SHAPES = [Shape(65536, 8192, d) for d in (8, 64, 256)]
_SMALL = [Shape(n, 1024, d) for n in (256, 2048) for d in (8, 64)]
_TINY = [Shape(40, 72, 8)]
_CALLS = 50


def steps(setting: Setting) -> list[Step]:
    """Return the steps for whole calls, kernels, and small work."""
    gpu = device_of(setting)
    shapes, small = (_TINY, []) if setting.rehearse else (_SHAPES, _SMALL)
    made = []
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            text = f"{shape.name} {str(dtype).removeprefix('torch.')}"

            def whole(emit: Emit, shape=shape, dtype=dtype) -> None:
                _whole(gpu, shape, dtype, emit)

            made.append(Step(f"whole call, {text}", 90, whole))
    for shape in shapes:

        def kernels(emit: Emit, shape=shape) -> None:
            _kernels(gpu, shape, 1 if setting.rehearse else _CALLS, emit)

        made.append(Step(f"kernels, {shape.name} float32", 90, kernels))
    for shape in small:

        def few(emit: Emit, shape=shape) -> None:
            _whole(gpu, shape, torch.float32, emit)

        made.append(Step(f"small work, {shape.name} float32", 60, few))
    made.append(Step("limits of the device", 60, lambda emit: _limits(gpu, setting, emit)))
    return made


def _whole(gpu: Gpu, shape: Shape, dtype: torch.dtype, emit: Emit) -> None:
    z, codebook, _ = gaussian(shape, dtype, device=gpu.device)

    def call() -> Tensor:
        return vqvae_fast.nearest_code(z, codebook).indices

    call()
    synchronize(gpu)
    host = _host_seconds(call, gpu)
    in_graph, eager = gpu.seconds_in_graph(call), gpu.seconds(call)
    name = str(dtype).removeprefix("torch.")
    goal = whole_call(shape, name, in_graph, gpu.name)
    emit(
        in_graph_us=1e6 * in_graph,
        eager_us=1e6 * eager,
        host_us=1e6 * host,
        goal_us=goal.target * 1e3 if goal else None,
        goal_met=goal.met if goal else None,
        tflops_in_graph=shape.flops / in_graph / 1e12,
    )


def _host_seconds(call, gpu: Gpu) -> float:
    """Returns the host's time for a call without waiting for its end: the least of several."""
    least = math.inf
    for _ in range(_CALLS if gpu.device.type == "cuda" else 1):
        synchronize(gpu)
        begin = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - begin)
    synchronize(gpu)
    return least


def _kernels(gpu: Gpu, shape: Shape, calls: int, emit: Emit) -> None:
    """Emits each kernel's median time from the profiler, in a warm cache."""
    z, codebook, _ = gaussian(shape, device=gpu.device)
    vqvae_fast.nearest_code(z, codebook)
    on_gpu = gpu.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        for _ in range(calls):
            vqvae_fast.nearest_code(z, codebook)
        synchronize(gpu)
    times: dict[str, list[float]] = defaultdict(list)
    for event in profile.events():
        if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name].append(event.time_range.elapsed_us())
    if not times:
        raise RuntimeError("the profiler saw no kernel: CUPTI may be missing, or forbidden")
    for name, found in sorted(times.items(), key=lambda item: -sum(item[1])):
        expected = estimate(shape.d, name)
        emit(
            kernel=name[:60],
            launches_a_call=len(found) / calls,
            us_a_call=sum(found) / calls,
            floor_us=expected.floor,
            likely_us=None if math.isnan(expected.likely) else expected.likely,
        )


def _limits(gpu: Gpu, setting: Setting, emit: Emit) -> None:
    emit(**gpu.limits(64 if setting.rehearse else 8192))
