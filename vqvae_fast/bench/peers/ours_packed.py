"""This package's search in a codebook that was packed beforehand."""

from torch import Tensor

from vqvae_fast import nearest_code, pack
from vqvae_fast.bench.peers.base import Search, SearchPeer


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    packed = pack(codebook)
    return lambda: nearest_code(z, packed).indices


PEER = SearchPeer(
    "ours, packed", "validation, search, distances; the codebook is packed beforehand", _prepare
)
