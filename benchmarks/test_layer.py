"""pytest-benchmark suite of a layer's training step: ``pytest benchmarks/test_layer.py``."""

import pytest
import torch

from benchmarks import environment
from benchmarks.data import LAYER_SHAPES, Shape, feature_map, gaussian
from benchmarks.layer import check
from benchmarks.peers import LAYER_PEERS, LayerPeer


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("peer", LAYER_PEERS, ids=lambda peer: peer.name.replace(" ", "-"))
def test_layer(benchmark, peer: LayerPeer, shape: Shape) -> None:
    reason = peer.unavailable()
    if reason:
        pytest.skip(reason)
    vectors = gaussian(shape)
    step = peer.build(feature_map(vectors.z), vectors.codebook)
    violating = check(peer, vectors, step())
    benchmark.group = shape.name
    benchmark.pedantic(step, rounds=5, iterations=1, warmup_rounds=1)
    benchmark.extra_info.update(
        device="cpu",
        cpu=environment.cpu_model(),
        isa=environment.isa() if peer.name.startswith("ours") else None,
        threads=torch.get_num_threads(),
        versions=environment.versions(),
        violating_rows=violating,
    )
