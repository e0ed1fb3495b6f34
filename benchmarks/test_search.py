"""pytest-benchmark suite of the search: ``pytest benchmarks/test_search.py``.

Ids are backend - shape. pytest-benchmark times one id after the other; for ratios that survive a
drifting machine use ``python -m benchmarks.search``, which interleaves.
"""

import pytest
import torch

from benchmarks import environment
from benchmarks.data import SEARCH_SHAPES, Shape, gaussian
from benchmarks.exactness import smallest_distances, violating_share
from benchmarks.peak import try_meter
from benchmarks.peers import OURS, SEARCH_PEERS, SearchPeer


@pytest.mark.parametrize("shape", SEARCH_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("peer", SEARCH_PEERS, ids=lambda peer: peer.name.replace(" ", "-"))
def test_search(benchmark, peer: SearchPeer, shape: Shape) -> None:
    reason = peer.why_not("float32")
    if reason:
        pytest.skip(reason)
    z, codebook, _ = gaussian(shape)
    call = peer.prepare(z, codebook)
    violating = violating_share(z, codebook, call(), smallest_distances(z, codebook))
    if peer is OURS:
        assert violating == 0.0
    threads = torch.get_num_threads()
    meter, why_no_peak = try_meter(threads)
    if meter:
        meter.sample()
    benchmark.group = shape.name
    benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
    flops = shape.flops / benchmark.stats.stats.median
    if meter:  # on both sides of the timing: shared machines drift
        meter.sample()
    benchmark.extra_info.update(
        device="cpu",
        cpu=environment.cpu_model(),
        isa=environment.isa() if peer is OURS else None,
        threads=threads,
        versions=environment.versions(),
        violating_rows=violating,
        gflops=flops / 1e9,
        share_of_peak=flops / meter.median() if meter else why_no_peak,
    )
