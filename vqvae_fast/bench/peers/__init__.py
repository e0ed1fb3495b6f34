"""The alternatives that a user has, one adapter in each file.

A new peer is a new file with a ``PEER`` (a search) or ``PEERS`` (layers) and a line in the lists
below. An adapter says why it cannot run; it never raises at import.
"""

from vqvae_fast.bench.peers import (
    faiss_flat,
    flash_kmeans,
    keops,
    ours,
    ours_gpu,
    ours_layer,
    ours_packed,
    reference_formula,
    scikit_learn,
    torch_addmm,
    torch_cdist,
    torch_compiled,
    torch_kept_norms,
    torch_narrow,
    vqp_layer,
)
from vqvae_fast.bench.peers.base import LayerPeer, ResidualPeer, SearchPeer, SumPeer
from vqvae_fast.bench.peers.residual import (
    FROZEN_RESIDUAL_PEERS,
    GPU_RESIDUAL_PEERS,
    RESIDUAL_PEERS,
)
from vqvae_fast.bench.peers.segment_sums import SUM_PEERS
from vqvae_fast.bench.peers.top_codes import top_code_peers

OURS = ours.PEER

# The list has the order of the tables: ours is first, because all ratios are taken against it.
SEARCH_PEERS: tuple[SearchPeer, ...] = (
    ours.PEER,
    torch_addmm.PEER,
    torch_cdist.PEER,
    torch_compiled.PEER,
    reference_formula.PEER,
    faiss_flat.SEARCH_ONLY,
    faiss_flat.WITH_ADD,
    scikit_learn.PEER,
    keops.PEER,
)

# Codebooks that do not change, so that each contender may prepare them beforehand.
FROZEN_SEARCH_PEERS: tuple[SearchPeer, ...] = (
    ours_packed.PEER,
    ours.PEER,
    torch_kept_norms.PEER,
    faiss_flat.SEARCH_ONLY,
)

GPU_SEARCH_PEERS: tuple[SearchPeer, ...] = (
    ours.PEER,
    ours_packed.PEER,
    ours_gpu.PLAIN,
    ours_gpu.CUDA,
    torch_addmm.PEER,
    torch_narrow.TF32,
    torch_narrow.BFLOAT16,
    torch_compiled.PEER,
    flash_kmeans.PEER,
)

LAYER_PEERS: tuple[LayerPeer, ...] = (*ours_layer.PEERS, *vqp_layer.PEERS)

__all__ = [
    "FROZEN_RESIDUAL_PEERS",
    "FROZEN_SEARCH_PEERS",
    "GPU_RESIDUAL_PEERS",
    "GPU_SEARCH_PEERS",
    "LAYER_PEERS",
    "OURS",
    "RESIDUAL_PEERS",
    "SEARCH_PEERS",
    "SUM_PEERS",
    "LayerPeer",
    "ResidualPeer",
    "SearchPeer",
    "SumPeer",
    "top_code_peers",
]
