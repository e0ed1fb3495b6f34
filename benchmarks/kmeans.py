"""Times k-means beside FAISS and scikit-learn: ``python -m benchmarks.kmeans``.

All start from the same codes, rows of the data, and make the same number of rounds. A second table
has the start that each library draws itself, on data in clusters. The limit of a round is its
search, which ``benchmarks.search`` compares with the processor's peak.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast import KMeans, nearest_code, segment_sum
from vqvae_fast.bench import environment, memory, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.interleave import summarise, turn
from vqvae_fast.bench.threads import all_threads

SHAPES = (Shape(50_000, 1024, 64), Shape(1_000_000, 4096, 32), Shape(200_000, 16384, 128))
QUICK = (Shape(400, 20, 9),)
ITERATIONS = 3
OURS, FAISS, SCIKIT_LEARN = "ours", "faiss.Kmeans", "sklearn.cluster.KMeans"
TIMED = {
    OURS: "fit from given codes: the rounds, then labels and inertia",
    FAISS: "train with init_centroids, on all rows (max_points_per_centroid=N, which is no sample; "
    "nredo=1), then a search of its index for the labels and distances",
    SCIKIT_LEARN: "fit from given codes, Lloyd's algorithm, n_init=1, tol=0; labels and inertia",
}
# Where float32 chooses a code that is not the nearest, the rounds take another path, whose inertia
# may be lower by chance. So much lower may a peer's be.
_BY_CHANCE = 1e-4
_LONG = 10.0  # seconds; a contender whose first turn takes longer has no other


class WorseInertiaError(AssertionError):
    """Our inertia is above that of a peer after as many rounds, so nothing is reported."""


class Fitted(NamedTuple):
    """Codes [K, D] and labels [N] of a contender."""

    codes: Tensor
    labels: Tensor


def _ours(x: Tensor, start: Tensor, iterations: int) -> Fitted:
    model = KMeans(len(start), init=start, max_iter=iterations, tol=0).fit(x)
    return Fitted(model.cluster_centers_, model.labels_)


def _faiss(x: Tensor, start: Tensor, iterations: int) -> Fitted:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = x.numpy()
    # FAISS takes a sample of 256 rows for each code and warns below 39, unless told otherwise.
    model = faiss.Kmeans(
        x.shape[1],
        len(start),
        niter=iterations,
        nredo=1,
        max_points_per_centroid=len(x),
        min_points_per_centroid=1,
        seed=1,
    )
    model.train(rows, init_centroids=start.numpy())
    labels = model.index.search(rows, 1)[1][:, 0]
    return Fitted(torch.from_numpy(model.centroids), torch.from_numpy(labels))


def _scikit_learn(x: Tensor, start: Tensor, iterations: int) -> Fitted:
    from sklearn.cluster import KMeans as ScikitLearn

    model = ScikitLearn(
        len(start), init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
    ).fit(x.numpy())
    return Fitted(torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_))


CONTENDERS: dict[str, Callable[[Tensor, Tensor, int], Fitted]] = {
    OURS: _ours,
    FAISS: _faiss,
    SCIKIT_LEARN: _scikit_learn,
}
_MODULES = {FAISS: "faiss", SCIKIT_LEARN: "sklearn"}


def _skipped(name: str) -> str | None:
    """Why a contender is left out."""
    if name in _MODULES:
        try:
            __import__(_MODULES[name])
        except ModuleNotFoundError:
            return f"{_MODULES[name]} is not installed"
    return None


def inertia_of(x: Tensor, codes: Tensor) -> float:
    """Return the inertia of rows [N, D] with codes [K, D], from the nearest codes in float64."""
    nearest = nearest_code(x, codes.float()).indices
    pieces = zip(x.split(1 << 16), nearest.split(1 << 16), strict=True)
    wide = codes.double()
    return sum(float((rows.double() - wide[at]).square().sum()) for rows, at in pieces)


def compare(shape: Shape, rounds: int, iterations: int) -> dict[str, Any]:
    """Return the JSON record of one shape, on Gaussian rows.

    Raises:
        WorseInertiaError: our inertia is above a peer's by more than chance.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.n, shape.d, generator=generator)
    start = x[torch.randperm(shape.n, generator=generator)[: shape.k]].clone()
    skipped = {n: why for n in CONTENDERS if (why := _skipped(n))}
    names = [name for name in CONTENDERS if name not in skipped]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    inertias: dict[str, float] = {}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if max(seconds[name], default=0.0) > _LONG:
                continue
            fitted: list[Fitted] = []
            run = CONTENDERS[name]
            seconds[name].append(
                turn(lambda run=run, to=fitted: to.append(run(x, start, iterations)), 0.0, 1)
            )
            if number == 0:
                inertias[name] = inertia_of(x, fitted[-1].codes)
    if any(inertias[OURS] > inertias[name] * (1 + _BY_CHANCE) for name in names):
        raise WorseInertiaError(f"after {iterations} rounds at {shape.name}: {inertias}")
    return {
        "shape": shape._asdict(),
        "contenders": {
            name: {
                "seconds": summarise(seconds[name])._asdict(),
                "times_slower_than_ours": summarise(
                    [
                        theirs / own
                        for theirs, own in zip(seconds[name], seconds[OURS], strict=False)
                    ]
                )._asdict(),
                "inertia": inertias[name],
            }
            for name in names
        },
        "parts": _parts(x, start, rounds),
        "skipped": skipped,
    }


def _parts(x: Tensor, codes: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of a round's search and segment sum, each called once for all rows."""
    search, sums = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        labels = nearest_code(x, codes).indices
        middle = time.perf_counter()
        segment_sum(x, labels, len(codes))
        search.append(middle - begin)
        sums.append(time.perf_counter() - middle)
    return {"search": summarise(search).median, "segment sum": summarise(sums).median}


class Clusters(NamedTuple):
    """Data in clusters of unequal size and spread, and the number of codes."""

    clusters: int
    n: int
    d: int
    k: int


CLUSTERS = (Clusters(300, 50_000, 32, 256), Clusters(1000, 100_000, 8, 1024))
QUICK_CLUSTERS = (Clusters(10, 300, 3, 8),)


def clustered(data: Clusters) -> Tensor:
    """Return rows [N, D]: clusters of sizes from a Pareto distribution."""
    draws = np.random.default_rng(0)
    sizes = draws.pareto(1.5, data.clusters)
    labels = draws.choice(data.clusters, data.n, p=sizes / sizes.sum())
    centres = 4 * draws.normal(size=(data.clusters, data.d))
    spreads = draws.uniform(0.1, 2, data.clusters)
    rows = centres[labels] + draws.normal(size=(data.n, data.d)) * spreads[labels, None]
    return torch.from_numpy(rows.astype(np.float32))


def compare_starts(data: Clusters, rounds: int, iterations: int = 20) -> dict[str, Any]:
    """Return the JSON record of the libraries' own starts; ``rounds`` seeds each."""
    x = clustered(data)
    found = {}
    for name, run in _OWN_STARTS.items():
        if _skipped(name):
            continue
        seconds, inertias = [], []
        for seed in range(rounds):
            begin = time.perf_counter()
            codes = run(x, data.k, iterations, seed)
            seconds.append(time.perf_counter() - begin)
            inertias.append(inertia_of(x, codes))
        found[name] = {
            "seconds": summarise(seconds)._asdict(),
            "inertia": float(np.mean(inertias)),
            "worst_inertia": max(inertias),
        }
    return {"data": data._asdict(), "iterations": iterations, "contenders": found}


def _own_start_of_ours(x: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    codes: Tensor = KMeans(k, max_iter=iterations, tol=0, random_state=seed).fit(x).cluster_centers_
    return codes


def _own_start_of_faiss(x: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    model = faiss.Kmeans(
        x.shape[1], k, niter=iterations, seed=seed + 1, max_points_per_centroid=len(x),
        min_points_per_centroid=1,
    )  # fmt: skip
    model.train(x.numpy())
    return torch.from_numpy(model.centroids)


def _own_start_of_scikit_learn(x: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans as ScikitLearn

    model = ScikitLearn(k, max_iter=iterations, tol=0, random_state=seed).fit(x.numpy())
    return torch.from_numpy(model.cluster_centers_)


_OWN_STARTS = {
    OURS: _own_start_of_ours,
    FAISS: _own_start_of_faiss,
    SCIKIT_LEARN: _own_start_of_scikit_learn,
}


def memory_call(_name: str, shape: Shape) -> Callable[[], Any]:
    """Return the fit whose memory is measured, after a warm-up on a few rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.n, shape.d, generator=generator)
    start = x[: shape.k].clone()
    few = x[: min(shape.n, 64)]
    KMeans(min(2, len(few)), init=few[:2], max_iter=1).fit(few)
    return lambda: _ours(x, start, 2)


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    iterations = record["iterations"]
    parts = [
        tables.heading(record),
        f"Float32, Gaussian rows, the same {iterations} rounds of Lloyd's algorithm from the same "
        "codes, then labels and inertia. Times are milliseconds: median (quartiles) of "
        f"{record['rounds']} turns, or of one that took more than {_LONG:.0f} s. "
        "The inertia is computed from each one's codes in float64.\n",
    ]
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        parts.append(f"\n## N={n}, K={k}, D={d}\n\n")
        rows = [
            (
                name,
                tables.milliseconds(line["seconds"]),
                tables.times(line["times_slower_than_ours"]),
                f"{line['inertia']:.8g}",
            )
            for name, line in entry["contenders"].items()
        ]
        parts.append(tables.table(("contender", "ms", "ours is faster", "inertia"), rows))
        search, sums = (entry["parts"][part] * 1e3 for part in ("search", "segment sum"))
        parts.append(
            f"\nOne search takes {search:.1f} ms, one segment sum {sums:.1f} ms; our fit makes "
            f"{iterations + 1} searches and {iterations + 1} sums."
        )
        if entry["memory"] is not None:
            codebook = k * d * 4
            parts.append(
                f" Its peak memory beside the data is {tables.mebibytes(entry['memory'])} MiB "
                f"(labels {tables.mebibytes(8 * n)}, a codebook {tables.mebibytes(codebook)})."
            )
        parts.append("\n")
    parts.append(
        "\n## Own starts\n\nClusters of unequal size and spread; each library draws its start "
        f"(ours and scikit-learn: k-means++; FAISS: random rows), then 20 rounds. Mean and "
        f"worst inertia of {record['rounds']} seeds.\n\n"
    )
    rows = [
        (
            "{n}, {k}, {d}; {clusters}".format(**entry["data"]),
            name,
            tables.milliseconds(line["seconds"]),
            f"{line['inertia']:.5g}",
            f"{line['worst_inertia']:.5g}",
        )
        for entry in record["starts"]
        for name, line in entry["contenders"].items()
    ]
    parts.append(tables.table(("N, K, D; clusters", "contender", "ms", "inertia", "worst"), rows))
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(tables.skipped(record))
    return "".join(parts)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.kmeans", __doc__, rounds=3)
    command_line.add_cpu_options(parser)
    parser.add_argument("--iterations", type=command_line.positive, default=ITERATIONS)
    options = parser.parse_args(given)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    rounds = 1 if options.quick else options.rounds
    with all_threads(options.threads):
        results = []
        for shape in tqdm(shapes, desc="k-means", disable=None):
            entry = compare(shape, rounds, options.iterations)
            peak = None
            if not options.no_memory:
                peak = memory.measure("benchmarks.kmeans:memory_call", OURS, shape, options.threads)
            results.append(entry | {"memory": None if peak is None else peak.total})
        data = QUICK_CLUSTERS if options.quick else CLUSTERS
        starts = [compare_starts(each, rounds) for each in data]
    record = environment.describe("benchmarks.kmeans", options.threads) | {
        "rounds": rounds,
        "iterations": options.iterations,
        "timed": TIMED,
        "skipped": {name: why for entry in results for name, why in entry["skipped"].items()},
        "results": results,
        "starts": starts,
    }
    command_line.publish(record, markdown(record), options, "kmeans")
    return record


if __name__ == "__main__":
    main()
