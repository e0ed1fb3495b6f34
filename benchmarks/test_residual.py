"""pytest-benchmark suite of residual VQ: ``pytest benchmarks/test_residual.py``.

Ids are backend-inference-shape; a call goes through all stages of the published model.
"""

from benchmarks.cases import RESIDUAL_CASES, Case, data, every
from vqvae_fast.bench.exactness import violating_stages
from vqvae_fast.bench.peers import RESIDUAL_PEERS, ResidualPeer


@every(RESIDUAL_PEERS, ["inference"], RESIDUAL_CASES)
def test_residual(contest, peer: ResidualPeer, mode: str, case: Case) -> None:
    contest(
        peer,
        case,
        lambda: peer.prepare(*data(case)),
        lambda indices: violating_stages(*data(case), indices),
        matrices=peer.matrices,
    )
