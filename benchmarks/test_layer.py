"""pytest-benchmark suite of the quantizer layer: ``pytest benchmarks/test_layer.py``.

Ids are backend-mode-shape. The backend's name says whether its codebook learns by moving averages
or by gradient; FLOP/s count the search of the forward pass alone.
"""

from benchmarks.cases import CASES, Case, data, every, truth
from vqvae_fast.bench.data import feature_map
from vqvae_fast.bench.layer import check, check_output
from vqvae_fast.bench.peers import LAYER_PEERS, LayerPeer

INFERENCE, TRAINING = "inference", "forward+backward"


@every(LAYER_PEERS, [INFERENCE, TRAINING], CASES)
def test_layer(contest, peer: LayerPeer, mode: str, case: Case) -> None:
    build, right = (peer.infer, check_output) if mode == INFERENCE else (peer.build, check)
    contest(
        peer,
        case,
        lambda: build(feature_map(data(case).z), data(case).codebook),
        lambda result: right(peer, data(case), result, truth(case)),
        matrices=peer.matrices,
    )
