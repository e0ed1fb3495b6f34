"""pytest-benchmark suite of the segment sum: ``pytest benchmarks/test_sums.py``.

Ids are backend-sum-shape; rows are summed by codes drawn uniformly, or by a trained model's.
FLOP/s count one addition for each number summed.
"""

from benchmarks.cases import SUM_CASES, Case, data, every
from vqvae_fast.bench.exactness import wrong_sums
from vqvae_fast.bench.peers import SUM_PEERS, SumPeer


@every(SUM_PEERS, ["sum"], SUM_CASES)
def test_sums(contest, peer: SumPeer, mode: str, case: Case) -> None:
    contest(
        peer,
        case,
        lambda: peer.prepare(*data(case), case.shape.k),
        lambda result: wrong_sums(*result, *data(case)),
        flops=float(case.shape.n * case.shape.d),
    )
