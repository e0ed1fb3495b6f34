"""Everything that a user could pick instead, one adapter a file.

A new peer is a new file with a ``PEER`` (a search) or ``PEERS`` (layers) and a line in the lists
below. An adapter says why it cannot run; it never raises at import.
"""

from benchmarks.peers import (
    faiss_flat,
    ours,
    ours_layer,
    reference_formula,
    scikit_learn,
    torch_addmm,
    torch_cdist,
    torch_compiled,
    vqp_layer,
)
from benchmarks.peers.base import LayerPeer, SearchPeer

OURS = ours.PEER

# In the order of the tables: ours first, since all ratios are taken against it.
SEARCH_PEERS: tuple[SearchPeer, ...] = (
    ours.PEER,
    torch_addmm.PEER,
    torch_cdist.PEER,
    torch_compiled.PEER,
    reference_formula.PEER,
    faiss_flat.SEARCH_ONLY,
    faiss_flat.WITH_ADD,
    scikit_learn.PEER,
)

LAYER_PEERS: tuple[LayerPeer, ...] = (*ours_layer.PEERS, *vqp_layer.PEERS)

__all__ = ["LAYER_PEERS", "OURS", "SEARCH_PEERS", "LayerPeer", "SearchPeer"]
