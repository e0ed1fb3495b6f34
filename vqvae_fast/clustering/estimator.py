"""k-means with the names of scikit-learn's estimator."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vqvae_fast.clustering.empty import Farthest
from vqvae_fast.clustering.parameters import Parameters, check_choices
from vqvae_fast.clustering.rounds import Clustering, assigned, lloyd, moved_to_means, one_round
from vqvae_fast.clustering.rows import Rows, Stream, as_rows, as_weights, is_stream, not_finite
from vqvae_fast.clustering.sample import sample
from vqvae_fast.clustering.seeding import plus_plus, random_rows
from vqvae_fast.distributed import from_first, is_distributed, rank
from vqvae_fast.dtypes import common_float, distance_dtype

Matrix = Tensor | np.ndarray[Any, Any]
# Rows in the sample from which the codes start, for each code.
_SAMPLES_PER_CODE = 64
_LARGEST_TABLE = 2**23  # numbers in the float64 table of distances that transform has at a time


class NotFittedError(ValueError, AttributeError):
    """The codes are needed before :meth:`KMeans.fit`, as scikit-learn's error of this name."""


class KMeans(Parameters):
    """k-means by Lloyd's algorithm, with exact assignments and deterministic sums.

    Every row gets its nearest code by :func:`vqvae_fast.nearest_code`; sums are accumulated in
    float64, piece by piece; results have the same bits for every number of threads. Names and
    behaviour are those of ``sklearn.cluster.KMeans`` where they are not said to differ, and
    ``sklearn.base.clone`` and pipelines take this class. scikit-learn is not needed.

    X is a tensor [N, D] of float32, bfloat16, float16 or float64 on any device, or a NumPy array
    or something that NumPy makes one of; results are tensors on the same device, or arrays. 16-bit
    rows count exactly as given, and their codes are float32. :meth:`fit` and :meth:`predict` also
    take an iterable of batches [n, D], such as a DataLoader, whose data need not fit into memory:
    it is read once for the start, once in each round and once at the end, and must give the same
    number of rows each time. Of a batch that is a tuple, the first part is taken. Memory beside the
    data is O(K D), and about 20 bytes a row.

    Args:
        n_clusters: K, the number of codes.
        metric: "euclidean", or "cosine" for spherical k-means: rows count by their direction, and
            codes have unit length.
        init: "k-means++", "random" (rows drawn by their weight), or the codes to start from,
            [K, D].
        n_init: how many starts are tried; the one with the least inertia is kept. "auto": 10 for
            "random", otherwise 1.
        max_iter: the largest number of rounds of a start.
        tol: rounds end when the codes' squared movements add up to at most this much times the
            mean variance of the columns.
        random_state: a number repeats all draws; a ``torch.Generator`` of the CPU continues; None
            draws from torch's default generator.
        verbose: print a line about each round.
        init_size: how many rows, drawn at random, the codes start from; 64 K unless given, or all
            where there are fewer.
        synced: the rows of all processes of ``torch.distributed`` are clustered together, and all
            get the same codes. Each process passes rows of its own, at least one, and all call
            :meth:`fit` or :meth:`partial_fit` together. Labels are those of its own rows.
        device: batches of an iterable are moved there; None leaves them where they are.

    Attributes:
        cluster_centers_: [K, D], float32 (float64 for float64 rows).
        labels_: int64 [N], the index of every row's code; only after :meth:`fit` with a matrix,
            and after :meth:`partial_fit`, for its batch.
        inertia_: sum of the squared distances between rows and their codes (for the cosine, of
            1 - cos), weighted, added in float64.
        n_iter_: the number of rounds.
        n_features_in_: the length of a row, D.
        counts_: [K], the weight of the rows that each code averages; after :meth:`partial_fit`.

    A code without rows moves to the row that lies farthest from its code; where there are fewer
    distinct rows than codes, codes stay unused. The page "Clustering" says how the start is drawn,
    and when another library fits better.
    """

    cluster_centers_: Any
    labels_: Any
    counts_: Any
    _sums: Tensor

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        init: "Literal['k-means++', 'random'] | Matrix" = "k-means++",
        n_init: "int | Literal['auto']" = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: "int | torch.Generator | None" = None,
        verbose: bool | int = False,
        init_size: int | None = None,
        synced: bool = False,
        device: "torch.device | str | None" = None,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose
        self.init_size = init_size
        self.synced = synced
        self.device = device

    @torch.no_grad()
    def fit(
        self, X: Matrix | Iterable[Any], y: object = None, sample_weight: Any = None
    ) -> "KMeans":
        """Cluster the rows.

        Args:
            X: [N, D], or an iterable of batches.
            y: ignored.
            sample_weight: [N], how often each row counts; with a matrix only.

        Returns:
            self.

        Raises:
            ValueError: X has another shape, NaN, infinities, or fewer rows than K; an iterable has
                no rows, or another number of rows at a later reading; an argument of the class or a
                weight does not fit.
            TypeError: X is sparse, has no float dtype, or is an iterator; an argument of the class
                has a wrong type.
        """
        self._check_choices()
        data = self._data(X, sample_weight)
        labels = None
        if isinstance(data, Rows):
            labels = torch.empty(len(data), dtype=torch.int64, device=data.values.device)
        generator = self._generator(data)
        start = self._start(data, generator)
        synced = self._is_synced()
        best: tuple[Clustering, Tensor | None] | None = None
        for _ in range(self._starts()):
            found = lloyd(
                data,
                self._first_codes(start, generator),
                max_iter=self.max_iter,
                tol=self.tol,
                labels=labels,
                synced=synced,
                report=print if self.verbose else None,
            )
            if best is None or found.inertia < best[0].inertia:
                best = found, None if labels is None else labels.clone()
        assert best is not None
        (codes, inertia, rounds), labels = best
        as_given = self._same_kind_as(X, data)
        self.cluster_centers_ = as_given(codes)
        self.inertia_, self.n_iter_, self.n_features_in_ = inertia, rounds, codes.shape[1]
        for name in ("labels_", "counts_", "_sums"):  # of an earlier fit or partial_fit
            self.__dict__.pop(name, None)
        if labels is not None:
            self.labels_ = as_given(labels)
        return self

    @torch.no_grad()
    def partial_fit(self, X: Matrix, y: object = None, sample_weight: Any = None) -> "KMeans":
        """Move the codes by one batch: each is the mean of all rows that have chosen it so far.

        With w and s the weight and the sum of a batch's rows that choose a code c of weight n, c
        becomes ``(n c + s) / (n + w)`` and n becomes n + w (Sculley, 2010, as ``MiniBatchKMeans``).
        The sums n c are kept in float64. The first batch also gives the start, and a batch after
        :meth:`fit` starts anew. A code that no row has chosen yet moves to a row of the batch that
        lies far from its code.

        Args:
            X: [n, D], the batch; for the first one n >= K, unless ``init`` gives the codes.
            y: ignored.
            sample_weight: [n], how often each row counts.

        Returns:
            self.

        Raises:
            ValueError: as :meth:`fit`.
            TypeError: as :meth:`fit`.
        """
        self._check_choices()
        rows = as_rows(X)
        fitted = hasattr(self, "counts_")
        if fitted:
            self._check_columns(rows)
        data = Rows(rows, as_weights(sample_weight, rows), self.metric, self.n_clusters)
        if fitted:
            codes = torch.as_tensor(self.cluster_centers_).to(rows.device, data.dtype)
            sums, counts = self._sums.to(rows.device), torch.as_tensor(self.counts_).to(rows.device)
        else:
            generator = self._generator(data)
            codes = self._first_codes(self._start(data, generator), generator)
            sums = torch.zeros(codes.shape, dtype=torch.float64, device=rows.device)
            counts = sums.new_zeros(len(codes))
        labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        farthest = Farthest(len(codes))
        synced = self._is_synced()
        found = one_round(data, codes, labels=labels, farthest=farthest, synced=synced)
        sums, counts = sums + found.sums, counts + found.weights
        farthest.fill_empty_(sums, counts, synced)
        codes = moved_to_means(codes, sums, counts, unit_length=self.metric == "cosine")
        as_given = self._same_kind_as(X, data)
        self.cluster_centers_, self.counts_ = as_given(codes), as_given(counts)
        self._sums = sums
        self.labels_, self.inertia_ = as_given(labels), float(found.inertia)
        self.n_iter_ = self.n_iter_ + 1 if fitted else 1
        self.n_features_in_ = codes.shape[1]
        return self

    @torch.no_grad()
    def predict(self, X: Matrix | Iterable[Any]) -> Any:
        """Return the index of every row's nearest code: int64 [N].

        Args:
            X: [N, D], or an iterable of batches; the labels then are in the order of the rows in
                this reading.

        Raises:
            ValueError: X has another D, no rows, NaN or infinities.
            vqvae_fast.clustering.NotFittedError: the codes have not been fitted.
        """
        data, codes = self._data_and_codes(X)
        labels = []
        for piece in assigned(data, codes):
            if not piece.inertia.isfinite():
                raise not_finite(data)
            labels.append(piece.labels)
        return self._same_kind_as(X, data)(torch.cat(labels))

    def fit_predict(
        self, X: Matrix | Iterable[Any], y: object = None, sample_weight: Any = None
    ) -> Any:
        """Cluster the rows and return the index of every row's code: int64 [N]."""
        self.fit(X, y, sample_weight)
        return self.labels_ if hasattr(self, "labels_") else self.predict(X)

    @torch.no_grad()
    def transform(self, X: Matrix) -> Any:
        """Return the distances of all rows from all codes: [N, K].

        The distances are Euclidean, not squared, or 1 - cos. They are computed in float64 and
        rounded to float32, or stay float64 where X or the codes are float64.

        Args:
            X: [N, D].

        Raises:
            ValueError: X has another D, NaN or infinities.
            vqvae_fast.clustering.NotFittedError: the codes have not been fitted.
        """
        data, codes = self._data_and_codes(X)
        if isinstance(data, Stream):
            raise TypeError(f"X must be a matrix [N, D], got {type(X).__name__}")
        out = torch.empty(len(data), len(codes), dtype=codes.dtype, device=codes.device)
        step = max(1, _LARGEST_TABLE // len(codes))
        for first in range(0, len(data), step):
            places = torch.arange(first, min(first + step, len(data)), device=codes.device)
            rows = data.take(places).double()
            if not rows.isfinite().all():
                raise not_finite(data)
            if self.metric == "cosine":
                out[places] = (1 - rows @ codes.double().T).to(out.dtype)
            else:
                out[places] = torch.cdist(rows, codes.double()).to(out.dtype)
        return self._same_kind_as(X, data)(out)

    def fit_transform(self, X: Matrix, y: object = None, sample_weight: Any = None) -> Any:
        """Cluster the rows and return :meth:`transform` of them."""
        return self.fit(X, y, sample_weight).transform(X)

    @torch.no_grad()
    def score(
        self, X: Matrix | Iterable[Any], y: object = None, sample_weight: Any = None
    ) -> float:
        """Return minus the inertia of the rows with the fitted codes.

        Args:
            X: [N, D], or an iterable of batches.
            y: ignored.
            sample_weight: [N], how often each row counts; with a matrix only.

        Raises:
            ValueError: X has another D, NaN or infinities; a weight does not fit.
            vqvae_fast.clustering.NotFittedError: the codes have not been fitted.
        """
        data, codes = self._data_and_codes(X, sample_weight)
        inertia = sum(float(piece.inertia) for piece in assigned(data, codes))
        if not np.isfinite(inertia):
            raise not_finite(data)
        return -inertia

    def _check_choices(self) -> None:
        check_choices(
            self.n_clusters,
            self.metric,
            self.init,
            self.n_init,
            self.max_iter,
            self.tol,
            self.random_state,
            self.init_size,
        )

    def _data(self, x: Any, sample_weight: Any) -> Rows | Stream:
        if is_stream(x):
            return self._stream(x, sample_weight)
        rows = as_rows(x)
        if len(rows) < self.n_clusters and not self._is_synced():
            raise ValueError(self._too_few(len(rows)))
        return Rows(rows, as_weights(sample_weight, rows), self.metric, self.n_clusters)

    def _stream(self, x: Iterable[Any], sample_weight: Any) -> Stream:
        if sample_weight is not None:
            raise ValueError("sample_weight must be None for an iterable of batches")
        device = None if self.device is None else torch.device(self.device)
        return Stream(x, self.metric, self.n_clusters, device)

    def _too_few(self, count: int) -> str:
        return f"X must have a row for each code: n_samples={count} < n_clusters={self.n_clusters}"

    def _generator(self, data: Rows | Stream) -> torch.Generator:
        """A generator of the CPU, which draws the same in all processes."""
        state = self.random_state
        if state is None or isinstance(state, torch.Generator):
            seed = torch.randint(2**62, (1,), generator=state)
        else:
            seed = torch.tensor([state])
        if self._is_synced():
            seed = from_first(seed.to(data.device or "cpu"))
        return torch.Generator().manual_seed(int(seed))

    def _start(self, data: Rows | Stream, generator: torch.Generator) -> Tensor | Rows:
        """The codes that ``init`` gives, or the rows to draw them from."""
        if not isinstance(self.init, str):
            return self._given_codes(data)
        synced = self._is_synced()
        size = self.init_size or _SAMPLES_PER_CODE * self.n_clusters
        if isinstance(data, Rows) and len(data) <= size and not synced:
            drawn = data
        else:
            own = generator
            if synced:
                own = torch.Generator().manual_seed(generator.initial_seed() + 1 + rank())
            drawn = sample(data, size, own, synced)
        if len(drawn) < self.n_clusters:
            raise ValueError(self._too_few(len(drawn)))
        return drawn

    def _given_codes(self, data: Rows | Stream) -> Tensor:
        codes = as_rows(self.init, name="init")
        wanted = (self.n_clusters, codes.shape[1] if data.dim is None else data.dim)
        if codes.shape != wanted:
            raise ValueError(f"init must be [K, D] = {list(wanted)}, got {list(codes.shape)}")
        if isinstance(data, Rows):
            data.dtype = common_float(data.dtype, distance_dtype(codes.dtype))
        else:
            data.dtype, data.dim = distance_dtype(codes.dtype), codes.shape[1]
        codes = codes if data.device is None else codes.to(data.device)
        codes = Rows(codes, None, self.metric, 1, data.dtype).all()
        if not codes.isfinite().all():
            zeros = ", without rows of zeros, which have no direction"
            raise ValueError(f"init must be finite{zeros if self.metric == 'cosine' else ''}")
        return codes

    def _first_codes(self, start: Tensor | Rows, generator: torch.Generator) -> Tensor:
        if isinstance(start, Tensor):
            return start
        draw = plus_plus if self.init == "k-means++" else random_rows
        codes = draw(start, self.n_clusters, generator)
        return from_first(codes) if self._is_synced() else codes

    def _starts(self) -> int:
        if self.n_init == "auto":
            return 10 if isinstance(self.init, str) and self.init == "random" else 1
        return 1 if not isinstance(self.init, str) else int(self.n_init)

    def _is_synced(self) -> bool:
        return self.synced and is_distributed()

    def _check_columns(self, rows: Tensor) -> None:
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: X must be [N, D={self.n_features_in_}]"
            )

    def _codes(self) -> Tensor:
        if not hasattr(self, "cluster_centers_"):
            raise NotFittedError(f"this {type(self).__name__} has no codes yet: call fit before")
        return torch.as_tensor(self.cluster_centers_)

    def _data_and_codes(self, x: Any, sample_weight: Any = None) -> tuple[Rows | Stream, Tensor]:
        """The rows, and the fitted codes on their device and in their dtype."""
        codes = self._codes()
        if is_stream(x):
            stream = self._stream(x, sample_weight)
            stream.dtype, stream.dim = codes.dtype, codes.shape[1]
            return stream, codes if stream.device is None else codes.to(stream.device)
        rows = as_rows(x)
        self._check_columns(rows)
        dtype = common_float(distance_dtype(rows.dtype), codes.dtype)
        data = Rows(rows, as_weights(sample_weight, rows), self.metric, len(codes), dtype)
        return data, codes.to(rows.device, dtype)

    def _same_kind_as(self, x: Any, data: Rows | Stream) -> Callable[[Tensor], Any]:
        """What makes results of tensors: arrays if x has been one, or batches of them."""
        arrays = data.gave_arrays if isinstance(data, Stream) else not isinstance(x, Tensor)
        return (lambda tensor: tensor.cpu().numpy()) if arrays else (lambda tensor: tensor)
