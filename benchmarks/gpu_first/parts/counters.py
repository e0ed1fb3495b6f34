"""Counts the work that the bound leaves, such as listed rows, on Gaussian and trained data."""

from pathlib import Path

import torch

import vqvae_fast
from benchmarks.gpu_first import launches
from benchmarks.gpu_first.device import device_of, synchronize
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast.backends.triton import search
from vqvae_fast.bench.data import Shape, Vectors, from_npz, gaussian

_DIMS = (8, 64, 256)


def steps(setting: Setting) -> list[Step]:
    """Return steps for Gaussian data, then for the vectors of trained models."""
    gpu = device_of(setting)
    made = []
    for dim in _DIMS[:2] if setting.rehearse else _DIMS:
        shape = Shape(48, 72, dim) if setting.rehearse else Shape(65536, 8192, dim)

        def made_up(emit: Emit, shape=shape) -> None:
            _count(gaussian(shape, device=gpu.device), emit)

        made.append(Step(f"Gaussian, {shape.name}", 60, made_up))
    files = [*sorted(setting.wheels.glob("*.npz")), *setting.latents]
    for path in files:

        def trained(emit: Emit, path: Path = path) -> None:
            z, codebook, source = from_npz(path)
            if setting.rehearse:
                z, codebook = z[:48], codebook[:72]
            _count(Vectors(z.to(gpu.device), codebook.to(gpu.device), source), emit)

        made.append(Step(f"trained, {path.stem}", 60, trained))
    if not files:
        made.append(Step("trained", 1, lambda emit: _none(setting)))

    def _count(vectors: Vectors, emit: Emit) -> None:
        search.forced_form = "filter"  # the counters count the work that the filter leaves
        with launches.watched() as found, torch.no_grad():
            vqvae_fast.nearest_code(vectors.z, vectors.codebook)
            synchronize(gpu)
        names = sorted({launch.kernel for launch in found})
        if not names:
            raise RuntimeError("no launch was seen: they did not go through Triton's own launch")
        rows = len(vectors.z)
        # The first counter counts listed rows with a bound, the second those measured in full.
        for name, values in launches.counters(found).items():
            for place, value in enumerate(values):
                emit(
                    shape=vectors.shape.name,
                    counter=f"{name}[{place}]",
                    total=value,
                    a_thousand_rows=1000 * value / rows,
                )
        emit(shape=vectors.shape.name, kernels=names)

    return made


def _none(setting: Setting) -> None:
    raise FileNotFoundError(
        f"no vectors of a trained model: {setting.wheels.name}/ holds no .npz, and --latents "
        "names none"
    )
