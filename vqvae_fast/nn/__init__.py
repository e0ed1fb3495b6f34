"""Modules around the search, and the small parts that they are made of."""

from vqvae_fast.nn.codebook.dead_codes import replace_dead_codes
from vqvae_fast.nn.codebook.ema import CodeMovingAverage, CodeUsage
from vqvae_fast.nn.codebook.kmeans import KMeansResult, kmeans
from vqvae_fast.nn.codebook.kmeans_init import KMeansInit
from vqvae_fast.nn.codebook.metrics import (
    CodebookMetrics,
    code_counts,
    codebook_metrics,
    perplexity,
    usage,
)
from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ
from vqvae_fast.nn.drop_in.random_projection_quantizer import RandomProjectionQuantizer
from vqvae_fast.nn.drop_in.residual_sim_vq import ResidualSimVQ
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.drop_in.sim_vq import SimVQ
from vqvae_fast.nn.drop_in.split_residual_vq import SplitResidualVQ
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.fit_codebook import fit_codebook
from vqvae_fast.nn.steps.freezable import Freezable, freeze
from vqvae_fast.nn.steps.losses import LossBreakdown
from vqvae_fast.nn.vqvae.one_hot import LazyOneHot
from vqvae_fast.nn.vqvae.quantizer import Quantizer
from vqvae_fast.nn.vqvae.vector_quantizer import VectorQuantizer

__all__ = [
    "CodeMovingAverage",
    "CodeUsage",
    "CodebookMetrics",
    "Freezable",
    "GroupedResidualVQ",
    "KMeansInit",
    "KMeansResult",
    "LazyOneHot",
    "LossBreakdown",
    "Quantizer",
    "RandomProjectionQuantizer",
    "ResidualSimVQ",
    "ResidualVQ",
    "SimVQ",
    "SplitResidualVQ",
    "VectorQuantize",
    "VectorQuantizer",
    "code_counts",
    "codebook_metrics",
    "fit_codebook",
    "freeze",
    "kmeans",
    "perplexity",
    "replace_dead_codes",
    "usage",
]
