"""Latents and codebooks of models that this machine trains on photographs, seeded and cached.

A model is trained once for each codebook. The cache keeps one .npz of its held-out latents and its
codebook, in $VQVAE_FAST_BENCH_CACHE, or else in vqvae_fast/bench in the user's cache folder.
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
# The benchmarks take these codebooks [K, D]: the reference's, and a large one in several widths.
TRAINED_SHAPES = tuple(
    Shape(ROWS, k, d) for k, d in ((512, 64), (8192, 32), (8192, 64), (8192, 128), (8192, 256))
)
_STEPS = 600
# These packages decode the photographs, draw the crops and compute; the cache key has their
# versions.
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
    """Return held-out latents and the codebook of the package's VQ-VAE, trained at the first call.

    Args:
        codebook_size: K, the number of codes.
        dim: D, the length of a vector.
        rows: N, the number of vectors.
        dtype: the dtype of both; the training is float32 in any case.
        **settings: other settings of :class:`vqvae_fast.training.TrainConfig`. The defaults here
            are 600 steps and seed 0, on the CPU.

    Raises:
        KeyboardInterrupt: a signal ended the training; nothing was cached.
        ModuleNotFoundError: the extra ``train`` is not installed.
        UserError: a setting is invalid, or there are no photographs.
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
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before training, not after
    made = _train(config, rows)
    with atomic_file(path) as temporary:
        np.savez(temporary, z=made.z.numpy(), codebook=made.codebook.numpy())
    return from_npz(path, dtype)


def trained_stages(codebook_size: int, dim: int, stages: int) -> tuple[Tensor, Tensor]:
    """Return z [N, D] of :func:`trained` and codebooks [stages, K, D].

    The first book is the model's. Each other is found by seeded k-means on the residuals of the
    books before it.
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
    """Return the folder of trained vectors."""
    if chosen := os.environ.get("VQVAE_FAST_BENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqvae_fast" / "bench"


def _key(config: "TrainConfig", rows: int) -> str:
    """Returns a key of everything that decides the bits, including processor and thread count."""
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
    """Returns the cached vectors; None if there are none, or none that can be used."""
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
