"""pytest-benchmark suite of the search: ``pytest benchmarks/test_search.py``.

Ids are backend-search-shape. pytest-benchmark times one id after the other; for ratios that
survive a drifting machine use ``python -m benchmarks.search``, which interleaves.
"""

from benchmarks.cases import CASES, Case, data, every, truth
from vqvae_fast.bench.exactness import violating_share
from vqvae_fast.bench.peers import SEARCH_PEERS, SearchPeer


@every(SEARCH_PEERS, ["search"], CASES)
def test_search(contest, peer: SearchPeer, mode: str, case: Case) -> None:
    contest(
        peer,
        case,
        lambda: peer.prepare(*data(case)[:2]),
        lambda indices: violating_share(*data(case)[:2], indices, truth(case)),
        matrices=peer.matrices,
    )
