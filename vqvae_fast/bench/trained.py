"""Latents and codebooks of models trained here, from the photographs: seeded, and cached.

A model is trained once for each codebook; what is kept is one .npz of its held-out latents and
its codebook, in $VQVAE_FAST_BENCH_CACHE, or else vqvae_fast/bench in the user's cache folder.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import vqvae_fast
from vqvae_fast.bench import environment
from vqvae_fast.bench.data import Shape, Vectors, from_npz, from_run
from vqvae_fast.bench.peers.base import needs

if TYPE_CHECKING:
    from vqvae_fast.training import TrainConfig

ROWS = 16384
# Of codebooks [K, D], what the benchmarks take: the reference's, and a large one of several widths.
TRAINED_SHAPES = tuple(
    Shape(ROWS, k, d) for k, d in ((512, 64), (8192, 32), (8192, 64), (8192, 128), (8192, 256))
)
_STEPS = 600
# What draws and decodes the photographs, and what computes.
_DISTRIBUTIONS = ("torch", "numpy", "pillow", "scikit-image", "scikit-learn")
_DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)

unavailable = needs("vqvae_fast.training.run", "what training needs", "train")


def trained(
    codebook_size: int,
    dim: int,
    rows: int = ROWS,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Vectors:
    """Held-out latents and codebook of the package's own VQ-VAE; trained at the first call.

    Args:
        codebook_size: K.
        dim: D.
        rows: N.
        dtype: of both; it is trained in float32 in any case.
        **settings: of :class:`vqvae_fast.training.TrainConfig`, beside the defaults here: 600
            steps, seed 0, on the CPU.

    Raises:
        KeyboardInterrupt: a signal ended the training; nothing was cached.
        ModuleNotFoundError: the extra ``train`` is not installed.
        UserError: settings that cannot be, or no photographs.
    """
    from vqvae_fast.atomic import atomic_file
    from vqvae_fast.training import TrainConfig

    steps = settings.pop("steps", _STEPS)
    defaults = {"device": "cpu", "eval_every": steps + 1, "eval_crops": 64}
    config = TrainConfig(codebook_size=codebook_size, dim=dim, steps=steps, **(defaults | settings))
    path = cache_folder() / f"K{codebook_size}-D{dim}-{_key(config, rows)}.npz"
    shape = Shape(rows, codebook_size, dim)
    if (cached := _read(path, shape, dtype)) is not None:
        return cached
    path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written fails before training
    made = _train(config, rows)
    with atomic_file(path) as temporary:
        np.savez(temporary, z=made.z.numpy(), codebook=made.codebook.numpy())
    return from_npz(path, dtype)


def trained_stages(codebook_size: int, dim: int, stages: int) -> tuple[Tensor, Tensor]:
    """z [N, D] of :func:`trained` and codebooks [stages, K, D].

    The first book is the model's; each other is k-means', seeded, on what the books before leave.
    """
    from vqvae_fast.nn import kmeans

    z, codebook, _ = trained(codebook_size, dim)
    books, residual = [codebook], z
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(stages - 1):
            residual = residual - books[-1][vqvae_fast.nearest_code(residual, books[-1]).indices]
            books.append(kmeans(residual, codebook_size).codes)
    return z, torch.stack(books)


def cache_folder() -> Path:
    """Where trained vectors are kept."""
    if chosen := os.environ.get("VQVAE_FAST_BENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqvae_fast" / "bench"


def _key(config: "TrainConfig", rows: int) -> str:
    """Of everything that decides the bits: other processors and thread counts round otherwise."""
    decides = {
        "config": config.to_dict(),
        "rows": rows,
        "vqvae_fast": vqvae_fast.__version__,
        "versions": environment.versions(_DISTRIBUTIONS),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "isa": environment.isa(),
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, shape: Shape, dtype: torch.dtype) -> Vectors | None:
    """What is cached; None where there is nothing, or nothing that can be used."""
    try:
        found = from_npz(path, dtype)
    except _DAMAGED:
        return None
    return found if found.shape == shape else None


def _train(config: "TrainConfig", rows: int) -> Vectors:
    from vqvae_fast.training import train

    with tempfile.TemporaryDirectory(prefix="vqvae_fast_bench_") as folder:
        result = train(replace(config, out=folder))
        if result.interrupted:
            raise KeyboardInterrupt
        return from_run(result.run, rows)
