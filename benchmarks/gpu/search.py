"""Times the search: names the contenders, and checks the answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contest import Clock, Contender, compete
from vqvae_fast.bench.contest import InexactError
from vqvae_fast.bench.data import Vectors
from vqvae_fast.bench.exactness import Smallest, smallest_distances, violating_share
from vqvae_fast.bench.peers import GPU_SEARCH_PEERS, OURS, SearchPeer

# This many rows are compared with a float64 search; for the others only the range is checked.
_SAMPLE = 1024


def compare(
    vectors: Vectors,
    clock: Clock,
    rounds: int,
    peers: Sequence[SearchPeer] | None = None,
) -> dict[str, Any]:
    """Return the JSON record of one shape. peers: the contenders, by default all.

    Raises:
        InexactError: our answer is not exact. A peer's inexactness is only recorded.
    """
    z, codebook, source = vectors
    shape, dtype = vectors.shape, str(z.dtype).removeprefix("torch.")
    generator = torch.Generator(z.device).manual_seed(1)
    sample = torch.randperm(shape.n, generator=generator, device=z.device)[:_SAMPLE]
    smallest = smallest_distances(z[sample], codebook)
    outcome = compete(
        [_contender(peer, vectors, dtype, sample, smallest) for peer in peers or GPU_SEARCH_PEERS],
        lambda name: OURS.name,
        clock,
        rounds,
    )
    for line in outcome.lines.values():
        line["tflops"] = shape.flops / line["seconds"]["median"] / 1e12
    return {
        "kind": "search",
        "shape": shape._asdict(),
        "data": source,
        "dtype": dtype,
        "contenders": outcome.lines,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
    }


def _contender(
    peer: SearchPeer, vectors: Vectors, dtype: str, sample: Tensor, smallest: Smallest
) -> Contender:
    z, codebook, source = vectors
    ours = peer.name.startswith("ours")

    def check(indices: Tensor) -> float:
        if indices.shape != z.shape[:1] or indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"indices must be [N={len(z)}], got {list(indices.shape)}")
        low, high = int(indices.min()), int(indices.max())
        if not 0 <= low <= high < len(codebook):
            raise ValueError(f"indices must be from 0 to K - 1, got {low} to {high}")
        wrong = violating_share(z[sample], codebook, indices[sample].long(), smallest)
        if ours and wrong:
            raise InexactError(
                f"{wrong:.2%} of {peer.name}'s rows at {vectors.shape.name} ({source}, {dtype}) "
                "chose a code that is not the nearest"
            )
        return wrong

    return Contender(
        peer.name, ours, peer.why_not(dtype), lambda: peer.prepare(z, codebook), check, True
    )
