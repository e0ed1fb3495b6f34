"""k-means in stages: the books of residual quantization, and semantic IDs."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.clustering.estimator import KMeans, Matrix
from vqvae_fast.clustering.parameters import at_least, check_random_state
from vqvae_fast.clustering.rows import Stream, as_rows, is_stream
from vqvae_fast.dtypes import distance_dtype


class ResidualClustering(NamedTuple):
    """Result of :func:`residual_kmeans`: tensors, or arrays for an array.

    Attributes:
        books: [Q, K, D], float32 (float64 for float64 rows).
        codes: int64 [N, Q], the indices of every row; None for an iterable.
        inertia: Q numbers, the inertia behind each stage; with a beam, that of the best path so
            far of each row.
    """

    books: Any
    codes: Any
    inertia: list[float]


@torch.no_grad()
def residual_kmeans(
    X: Matrix | Iterable[Any],
    n_stages: int,
    n_clusters: int,
    *,
    beam: int = 1,
    random_state: "int | torch.Generator | None" = None,
    **arguments: Any,
) -> ResidualClustering:
    """Train the books of residual quantization, each by :class:`KMeans` on what the last has left.

    With the books :func:`vqvae_fast.residual_nearest_code` encodes other rows, and
    :func:`vqvae_fast.nn.fit_codebook` does the same for a quantizer with projections.

    Args:
        X: [N, D], or an iterable of batches, which is read about as often as the stages have
            rounds. Types as for :class:`KMeans`.
        n_stages: Q, the number of books.
        n_clusters: K, the number of codes in each.
        beam: keep so many ways to encode a row. A book is then trained on what all of them have
            left, and ``codes`` is the best way in the end (as additive quantizers train, Liu et
            al., arXiv 1509.05195). 2 to 4 often lower the error; more can raise it. It costs
            ``beam`` searches a row for as many codes, and N x beam x (beam + D) numbers; X must be
            a matrix. 1: each stage takes the nearest code.
        random_state: as for :class:`KMeans`.
        **arguments: further arguments of :class:`KMeans`, except for ``metric``, ``init`` as codes,
            and ``synced``.

    Raises:
        ValueError: as :meth:`KMeans.fit`; a number is not positive; there is a beam for an
            iterable.
        TypeError: as :meth:`KMeans.fit`, or an argument is not one that :class:`KMeans` has.
    """
    at_least("n_stages", n_stages, 1)
    at_least("beam", beam, 1)
    check_random_state(random_state)
    refused = {"metric", "synced"} & arguments.keys()
    if refused or not isinstance(arguments.get("init", "random"), str):
        raise TypeError(
            "residual_kmeans is Euclidean, in one process, and starts each book by 'k-means++' or "
            f"'random', got {', '.join(sorted(refused)) or 'codes to start from'}"
        )
    if random_state is None or isinstance(random_state, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=random_state))
    else:
        seed = int(random_state)
    models = [
        KMeans(n_clusters, random_state=(seed + stage) % 2**63, **arguments)
        for stage in range(n_stages)
    ]
    if is_stream(X):
        if beam > 1:
            raise ValueError(f"X must be a matrix [N, D] for beam={beam}, got an iterable")
        return _from_stream(Stream(X, "euclidean", n_clusters, None), models)
    rows = as_rows(X)
    found = _from_rows(rows.to(distance_dtype(rows.dtype)), models, beam)
    if isinstance(X, Tensor):
        return found
    return found._replace(books=found.books.cpu().numpy(), codes=found.codes.cpu().numpy())


def _from_rows(rows: Tensor, models: list[KMeans], beam: int) -> ResidualClustering:
    left = rows[:, None]  # [N, J, D]: what each of J ways has left
    codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)
    books, inertia = [], []
    for model in models:
        book: Tensor = model.fit(left.flatten(0, 1)).cluster_centers_
        books.append(book)
        if beam == 1:
            codes = torch.cat([codes, model.labels_[:, None, None]], dim=2)
            left = left - book[model.labels_][:, None]
            inertia.append(model.inertia_)
        else:
            left, codes, errors = _extended(left, codes, book, beam)
            inertia.append(errors)
    return ResidualClustering(torch.stack(books), codes[:, 0], inertia)


def _extended(left: Tensor, codes: Tensor, book: Tensor, beam: int) -> tuple[Tensor, Tensor, float]:
    """The best ways one stage longer: [N, J, D] and [N, J, stages], best first; their inertia."""
    # No more of the best ways can continue one way than that way has codes.
    found = functional.nearest_codes(left, book, min(beam, len(book)))
    distances, order = found.distances.flatten(1).sort(dim=1, stable=True)
    kept = order[:, : min(beam, order.shape[1])]
    way, code = kept // found.indices.shape[2], found.indices.flatten(1).gather(1, kept)
    at = torch.arange(len(left), device=left.device)[:, None]
    longer = torch.cat([codes[at, way], code[..., None]], dim=2)
    return left[at, way] - book[code], longer, float(distances[:, 0].double().sum())


class _Left:
    """The batches of a stream, less what the books so far [Q, K, D] take of them."""

    def __init__(self, stream: Stream, books: list[Tensor]):
        self.stream, self.books = stream, books

    def __iter__(self) -> Iterator[Tensor]:
        books = torch.stack(self.books) if self.books else None
        for rows, _ in self.stream:
            if books is None:
                yield rows
            else:
                yield rows - functional.residual_nearest_code(rows, books).quantized


def _from_stream(stream: Stream, models: list[KMeans]) -> ResidualClustering:
    books: list[Tensor] = []
    for model in models:
        books.append(model.fit(_Left(stream, books)).cluster_centers_)
    found = torch.stack(books)
    inertia = [model.inertia_ for model in models]
    return ResidualClustering(found.cpu().numpy() if stream.gave_arrays else found, None, inertia)
