"""Modules around the search, and the small parts that they are made of."""

from vqvae_fast.nn.dead_codes import replace_dead_codes
from vqvae_fast.nn.ema import CodeMovingAverage, CodeUsage
from vqvae_fast.nn.kmeans import KMeans, KMeansInit, kmeans
from vqvae_fast.nn.metrics import code_counts, perplexity, usage
from vqvae_fast.nn.one_hot import LazyOneHot
from vqvae_fast.nn.split_residual_vq import SplitResidualVQ
from vqvae_fast.nn.vector_quantizer import VectorQuantizer

__all__ = [
    "CodeMovingAverage",
    "CodeUsage",
    "KMeans",
    "KMeansInit",
    "LazyOneHot",
    "SplitResidualVQ",
    "VectorQuantizer",
    "code_counts",
    "kmeans",
    "perplexity",
    "replace_dead_codes",
    "usage",
]
