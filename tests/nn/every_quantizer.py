"""Every quantizer class, with every option that adds state, and what each is called with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from vqvae_fast.nn import (
    GroupedResidualVQ,
    RandomProjectionQuantizer,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    SplitResidualVQ,
    VectorQuantize,
    VectorQuantizer,
)

BATCH, LENGTH, DIM = 4, 8, 8
_LEARNABLE = {"learnable_codebook": True, "ema_update": False}


class Quantizer(NamedTuple):
    """A way to make a quantizer, and the shape of what it takes."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (BATCH, LENGTH, DIM)


def _drop_in(kind, **options):
    return Quantizer(lambda: kind(**{"dim": DIM, "codebook_size": 16} | options))


def _reference(**options):
    return Quantizer(lambda: VectorQuantizer(16, DIM, **options), (BATCH, DIM, 4, 4))


def _residual(**options):
    return _drop_in(ResidualVQ, num_quantizers=3, **options)


_SPLIT = {"codebook_dim": 4, "num_quantizers": 3}
QUANTIZERS = {
    "VectorQuantize": _drop_in(VectorQuantize),
    "VectorQuantize k-means": _drop_in(VectorQuantize, kmeans_init=True),
    "VectorQuantize learnable": _drop_in(VectorQuantize, **_LEARNABLE),
    "VectorQuantize projected": _drop_in(VectorQuantize, codebook_dim=4),
    "VectorQuantize affine": _drop_in(VectorQuantize, affine_param=True),
    "VectorQuantize cosine": _drop_in(VectorQuantize, use_cosine_sim=True),
    "VectorQuantize heads": _drop_in(VectorQuantize, heads=2, separate_codebook_per_head=True),
    "VectorQuantize bridge": Quantizer(
        lambda: VectorQuantize(DIM, 16, vq_bridge=nn.Linear(DIM, DIM))
    ),
    "VectorQuantize orthogonal": _drop_in(VectorQuantize, orthogonal_reg_weight=0.1),
    "VectorQuantizer": _reference(),
    "VectorQuantizer averages": _reference(learning="ema"),
    "VectorQuantizer expiry": _reference(dead_code_threshold=0.1),
    "VectorQuantizer k-means": _reference(learning="ema", kmeans_init=True),
    "ResidualVQ": _residual(),
    "ResidualVQ dropout": _residual(quantize_dropout=True),
    "ResidualVQ shared": _residual(shared_codebook=True),
    "ResidualVQ implicit": _residual(implicit_neural_codebook=True),
    "ResidualVQ beams": _residual(beam_size=2, beam_score_quantizer_weights=[1.0, 2.0, 3.0]),
    "ResidualVQ k-means": _residual(kmeans_init=True),
    "GroupedResidualVQ": _drop_in(
        GroupedResidualVQ, num_quantizers=2, groups=2, quantize_dropout=True
    ),
    "SimVQ": _drop_in(SimVQ),
    "ResidualSimVQ": _drop_in(ResidualSimVQ, num_quantizers=3, quantize_dropout=True),
    "RandomProjectionQuantizer": _drop_in(RandomProjectionQuantizer, codebook_dim=4),
    "SplitResidualVQ": Quantizer(
        lambda: SplitResidualVQ(dim=DIM, codebook_size=16, quantize_dropout=True, **_SPLIT),
        (BATCH, DIM, LENGTH),
    ),
}


def tensors(result):
    """The tensors of what a quantizer returns, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [value for value in result if isinstance(value, torch.Tensor)]
