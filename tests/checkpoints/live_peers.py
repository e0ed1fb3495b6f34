"""Live modules of vector-quantize-pytorch, and ours that are made from them."""

import copy
import functools

import pytest
import torch
from torch import nn

import vqvae_fast
from vqvae_fast.checkpoints.live import constructor_arguments, copy_state, peer_class

peer = pytest.importorskip("vector_quantize_pytorch")

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
BRIDGE = nn.Linear(8, 8)
TRANSFORM = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
GRADIENT = {"learnable_codebook": True, "ema_update": False}
AFFINE = {"affine_param": True}
STAGES = {"num_quantizers": 3}
BASE = {
    "VectorQuantize": {"dim": 8, "codebook_size": 16},
    "ResidualVQ": {"dim": 8, "codebook_size": 16, **STAGES},
    "GroupedResidualVQ": {"dim": 16, "codebook_size": 16, **STAGES, "groups": 2},
    "SimVQ": {"dim": 8, "codebook_size": 16},
    "ResidualSimVQ": {"dim": 8, "codebook_size": 16, **STAGES},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 16, "codebook_dim": 4},
}


def made(kind, **options):
    return getattr(peer, kind)(**BASE[kind] | copy.deepcopy(options))


def from_live(theirs):
    """Ours from a live one, with its state."""
    ours = getattr(vqvae_fast, peer_class(theirs))(**constructor_arguments(theirs))
    copy_state(theirs, ours)
    return ours
