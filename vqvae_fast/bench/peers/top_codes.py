"""The ways to find the k nearest codes."""

import torch
from torch import Tensor

import vqvae_fast
from vqvae_fast.bench.peers.base import Search, SearchPeer, needs


def top_code_peers(k: int) -> tuple[SearchPeer, ...]:
    """Return the peers that find k codes: their calls return the indices [N, k], nearest first."""

    def ours(z: Tensor, codebook: Tensor) -> Search:
        return lambda: vqvae_fast.nearest_codes(z, codebook, k).indices

    def ours_packed(z: Tensor, codebook: Tensor) -> Search:
        packed = vqvae_fast.pack(codebook)
        return lambda: vqvae_fast.nearest_codes(z, packed, k).indices

    def cdist(z: Tensor, codebook: Tensor) -> Search:
        return lambda: torch.cdist(z, codebook).topk(k, largest=False).indices

    def faiss_search(z: Tensor, codebook: Tensor) -> Search:
        import faiss

        index = faiss.IndexFlatL2(codebook.shape[1])
        index.add(codebook.numpy())
        return lambda: torch.from_numpy(index.search(z.numpy(), k)[1])

    return (
        SearchPeer("ours", "nearest_codes: it packs the codebook in every call", ours),
        SearchPeer("ours, packed", "nearest_codes with a codebook packed beforehand", ours_packed),
        SearchPeer(
            "torch cdist+topk",
            "cdist in its default mode (a product above 25 rows) and topk, eager",
            cdist,
            dtypes=("float32", "float64"),
            matrices=1,
        ),
        SearchPeer(
            "FAISS search",
            "IndexFlatL2.search alone, in an index that is already filled",
            faiss_search,
            needs("faiss", "faiss-cpu"),
            ("float32",),
        ),
    )
