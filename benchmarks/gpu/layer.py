"""Times the quantizer layer, forward and backward, in training mode."""

from typing import Any

from torch import Tensor

from benchmarks.gpu.contest import Clock, Contender, compete
from vqvae_fast.bench.data import Vectors, feature_map
from vqvae_fast.bench.layer import check
from vqvae_fast.bench.peers import LAYER_PEERS, LayerPeer

_RIVALS = {"ema": "ours (EMA)", "gradient": "ours (gradient)"}


def compare(vectors: Vectors, clock: Clock, rounds: int) -> dict[str, Any]:
    """Return the JSON record of one shape.

    Raises:
        WrongLayerError: our first step differs from the readable formula.
    """
    fmap = feature_map(vectors.z)
    learning = {peer.name: peer.learning for peer in LAYER_PEERS}
    outcome = compete(
        [_contender(peer, vectors, fmap) for peer in LAYER_PEERS],
        lambda name: _RIVALS[learning[name]],
        clock,
        rounds,
    )
    for name, line in outcome.lines.items():
        line["learning"] = learning[name]
    return {
        "kind": "layer",
        "shape": vectors.shape._asdict(),
        "data": vectors.source,
        "dtype": "float32",
        "contenders": outcome.lines,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
    }


def _contender(peer: LayerPeer, vectors: Vectors, fmap: Tensor) -> Contender:
    return Contender(
        peer.name,
        peer.name.startswith("ours"),
        peer.unavailable(),
        lambda: peer.build(fmap, vectors.codebook),
        lambda step: check(peer, vectors, step),
        False,
    )
