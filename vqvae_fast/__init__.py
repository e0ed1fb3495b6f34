"""Fast, exact vector quantization for PyTorch, and the VQ-VAE around it.

Four ways in:

* call the search: :func:`nearest_code`, :func:`nearest_codes`, :func:`quantize`,
  :func:`segment_sum`; :func:`pack` keeps a codebook packed that does not change, and on a GPU
  :func:`warm_up` compiles their kernels ahead of time;
* swap a module: :class:`VectorQuantize`, :class:`ResidualVQ` and others replace those of
  vector-quantize-pytorch, :class:`VectorQuantizer` that of the reference VQ-VAE, :class:`VQVAE` a
  whole model; :func:`load_quantizer` brings the weights; or leave the model as it is, and
  :func:`accelerate` gives its quantizers exact, fast searches in place;
* cluster: :class:`KMeans` and :func:`residual_kmeans`; :func:`fit_codebook` starts the codes of a
  quantizer from data;
* train: ``vqvae-fast train`` on the command line, :mod:`vqvae_fast.training` from Python.
"""

from vqvae_fast import ops as _ops  # noqa: F401  (registers torch.ops.vqvae_fast.*)
from vqvae_fast._version import __version__
from vqvae_fast.acceleration import accelerate, compare
from vqvae_fast.checkpoints import load_quantizer
from vqvae_fast.clustering import KMeans, ResidualClustering, residual_kmeans
from vqvae_fast.functional import (
    NearestCode,
    NearestCodes,
    Quantized,
    ResidualNearestCode,
    SegmentSum,
    nearest_code,
    nearest_codes,
    quantize,
    residual_nearest_code,
    segment_sum,
)
from vqvae_fast.models import VQVAE
from vqvae_fast.nn import (
    GroupedResidualVQ,
    RandomProjectionQuantizer,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
    VectorQuantizer,
    fit_codebook,
    freeze,
)
from vqvae_fast.packed import PackedCodebook, pack
from vqvae_fast.warming import warm_up

__all__ = [
    "VQVAE",
    "GroupedResidualVQ",
    "KMeans",
    "NearestCode",
    "NearestCodes",
    "PackedCodebook",
    "Quantized",
    "RandomProjectionQuantizer",
    "ResidualClustering",
    "ResidualNearestCode",
    "ResidualSimVQ",
    "ResidualVQ",
    "SegmentSum",
    "SimVQ",
    "VectorQuantize",
    "VectorQuantizer",
    "__version__",
    "accelerate",
    "compare",
    "fit_codebook",
    "freeze",
    "load_quantizer",
    "nearest_code",
    "nearest_codes",
    "pack",
    "quantize",
    "residual_kmeans",
    "residual_nearest_code",
    "segment_sum",
    "warm_up",
]
