"""Quantizers that the tests of VectorQuantize share."""

import torch

from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize

MASK = torch.arange(12) < torch.tensor([[5], [9]])
GRADIENT = {"learnable_codebook": True, "ema_update": False}
TRAINING = [
    {},
    {"rotation_trick": False},
    {"threshold_ema_dead_code": 2},
    {"kmeans_init": True, "threshold_ema_dead_code": 2, "use_cosine_sim": True},
    {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    {"codebook_dim": 3, "accept_image_fmap": True},
    GRADIENT,
    {**GRADIENT, "use_cosine_sim": True, "sync_update_v": 0.3},
    {"affine_param": True},
    {"commitment_use_cross_entropy_loss": True},
    {"codebook_diversity_loss_weight": 0.5},
    {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
    {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 5},
    {"stochastic_sample_codes": True, "straight_through": True},
    {"directional_reparam": True, "threshold_ema_dead_code": 1},
]


def quantizer(**options):
    return VectorQuantize(**{"dim": 8, "codebook_size": 16} | options)


def frozen(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def inputs_of(options):
    return torch.randn((2, 8, 3, 4) if "accept_image_fmap" in options else (2, 12, 8))
