"""Writes a search for nearest codes, and measures it beside ours: is it exact, and is it fast?

    python examples/write_a_search.py

The search of this example multiplies in bfloat16, measures the distances of the best few codes in
float32 and takes the nearest of these. That is fast on some machines, and wrong where more codes
are near than it measures.
"""

import argparse
from statistics import median

import torch
from torch import Tensor

from vqvae_fast.bench import search
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import SEARCH_PEERS
from vqvae_fast.bench.peers.base import Search, SearchPeer

CANDIDATES = 4


def prepare(z: Tensor, codebook: Tensor) -> Search:
    """Return a call that searches; what is made here beforehand is not timed.

    Args:
        z: [N, D].
        codebook: [K, D].
    """
    transposed = codebook.bfloat16().t().contiguous()
    half_norms = codebook.square().sum(dim=1) / 2

    def nearest() -> Tensor:
        scores = half_norms - z.bfloat16() @ transposed
        best = scores.topk(CANDIDATES, dim=1, largest=False).indices
        distances = (z[:, None] - codebook[best]).square().sum(dim=2)
        return best.gather(1, distances.argmin(dim=1, keepdim=True))[:, 0]

    return nearest


MINE = SearchPeer("mine", timed="the product in bfloat16, and four distances", prepare=prepare)


def main() -> None:
    """Measure on Gaussian data, and print how exact and how fast both are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=Shape.parse, default=Shape(4096, 8192, 64), help="N,K,D")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contenders = [SEARCH_PEERS[0], MINE]
    measured = search.measure(gaussian(options.shape), None, options.rounds, 0.1, contenders)
    print(f"{options.shape.name}, {torch.get_num_threads()} threads")
    for name, seconds in measured.seconds.items():
        wrong = measured.violating[name]
        print(f"{name}: {1000 * median(seconds):.2f} ms, {wrong:.2%} of the codes are not nearest")
    for name, reason in measured.left_out.items():
        print(f"{name} was not timed: {reason}")


if __name__ == "__main__":
    main()
