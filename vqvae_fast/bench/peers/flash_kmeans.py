"""The assignment step of flash-kmeans, including its choice of tiles.

It does not promise exactness: it multiplies float32 in one TF32 pass, adds the squared norms that
the caller passes and clamps the result at 0, so that codes near each other become equal.
"""

from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer, needs


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rows, codes = z[None], codebook[None]
    row_norms = rows.float().square().sum(dim=2)
    return lambda: euclid_assign_triton(rows, codes, row_norms)[0]


PEER = SearchPeer(
    "flash-kmeans",
    "euclid_assign_triton in its defaults, the codes' norms included and the rows' norms brought "
    "along: generous; int32 indices, no distances; compilation for each shape excluded",
    _prepare,
    needs("flash_kmeans.assign_euclid_triton", "flash-kmeans", "bench-gpu"),
    ("float32", "bfloat16", "float16"),
)
