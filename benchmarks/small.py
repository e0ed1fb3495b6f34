"""Times few vectors against codebooks that do not change: ``python -m benchmarks.small``.

Each row has as many different codebooks as a model has stages, and searches them in turn, so that a
codebook is as cold as it is in the model. The time is the CPU time of one thread for one search. A
second table has residual quantization: all stages of a model in a call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.cpu_time import ABOUT_THE_TABLES, WrongCodeError, cell, timed
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape, gaussian_stages
from vqvae_fast.bench.exactness import smallest_distances, violating_share, violating_stages
from vqvae_fast.bench.peers import (
    FROZEN_RESIDUAL_PEERS,
    FROZEN_SEARCH_PEERS,
    torch_addmm,
    torch_cdist,
)
from vqvae_fast.bench.threads import all_threads

# addmm and cdist are the quickest peers for few vectors in a codebook that nothing has prepared.
CONTENDERS = (*FROZEN_SEARCH_PEERS, torch_addmm.PEER, torch_cdist.PEER)
OURS = CONTENDERS[0].name


class Books(NamedTuple):
    """The codebooks of a model: how many there are, and the codes K and dimensions D of each."""

    system: str
    count: int
    k: int
    d: int
    residual: bool = False


# LlamaGen and GCP-VQVAE have one book, which the model's other layers leave cold.
BOOKS = (
    Books("Mimi", 32, 2048, 256, residual=True),
    Books("EnCodec", 32, 1024, 128, residual=True),
    Books("DAC", 9, 1024, 8, residual=True),
    Books("LlamaGen", 32, 16384, 8),
    Books("GCP-VQVAE", 32, 8192, 64),
)
VECTORS = (1, 13, 50, 125)
QUICK_BOOKS = (Books("tiny", 2, 300, 16, residual=True),)
QUICK_VECTORS = (1, 13)


def compare(books: Books, vectors: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of one row, on Gaussian vectors and codes.

    Raises:
        WrongCodeError: one of our codes is farther than the contract allows.
    """
    generator = torch.Generator().manual_seed(0)
    codebooks = torch.randn(books.count, books.k, books.d, generator=generator)
    z = torch.randn(vectors, books.d, generator=generator)
    truths = [smallest_distances(z, codebook) for codebook in codebooks]
    sweeps, wrong, skipped = {}, {}, {}
    for peer in CONTENDERS:
        if reason := peer.why_not("float32", Shape(vectors, books.k, books.d)):
            skipped[peer.name] = reason
            continue
        searches = [peer.prepare(z, codebook) for codebook in codebooks]
        answers: list[Tensor] = [search() for search in searches]
        wrong[peer.name] = max(
            violating_share(z, codebook, answer, truth)
            for codebook, answer, truth in zip(codebooks, answers, truths, strict=True)
        )

        def sweep(searches: list[Callable[[], Tensor]] = searches) -> None:
            for search in searches:
                search()

        sweeps[peer.name] = sweep
    return _record(books, vectors, sweeps, books.count, wrong, skipped, rounds, min_seconds)


def compare_stages(books: Books, vectors: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of residual quantization in all books.

    Raises:
        WrongCodeError: one of our codes is farther than the contract allows.
    """
    z, codebooks = gaussian_stages(Shape(vectors, books.k, books.d), books.count)
    calls, wrong = {}, {}
    for peer in FROZEN_RESIDUAL_PEERS:
        calls[peer.name] = peer.prepare(z, codebooks)
        wrong[peer.name] = violating_stages(z, codebooks, calls[peer.name]())
    return _record(books, vectors, calls, 1, wrong, {}, rounds, min_seconds)


def _record(
    books: Books,
    vectors: int,
    sweeps: dict[str, Callable[[], Any]],
    searches: int,
    wrong: dict[str, float],
    skipped: dict[str, str],
    rounds: int,
    min_seconds: float,
) -> dict[str, Any]:
    if any(wrong[name] for name in wrong if name.startswith("ours")):
        raise WrongCodeError(f"codes of ours are wrong at {books} with {vectors} vectors: {wrong}")
    contenders = timed(sweeps, searches, rounds, min_seconds)
    return {
        "system": books.system,
        "books": books.count,
        "shape": Shape(vectors, books.k, books.d)._asdict(),
        "contenders": {name: line | {"wrong": wrong[name]} for name, line in contenders.items()},
        "skipped": skipped,
    }


def _table(entries: list[dict[str, Any]]) -> str:
    names = list(entries[0]["contenders"])
    rows = []
    for entry in entries:
        n, k, d = entry["shape"].values()
        lines = [entry["contenders"][name] for name in names]
        cells = [cell(line) for line in lines]
        rows.append((entry["system"], str(entry["books"]), f"{n}, {k}, {d}", *cells))
    return tables.table(("model", "books", "N, K, D", *names), rows)


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    parts = [
        tables.heading(record),
        "Float32, Gaussian, the books searched in turn; the time is that of one search. ",
        ABOUT_THE_TABLES.format(rounds=record["rounds"]),
        _table(record["results"]),
        "\nResidual quantization in all books; microseconds for one call:\n\n",
        _table(record["residual"]) if record["residual"] else "none of these models has stages\n",
        "\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()),
        "\nTimed in residual quantization:\n"
        + "".join(f"- {n}: {t}\n" for n, t in record["timed_residual"].items()),
        tables.skipped(record),
    ]
    return "".join(parts)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.small", __doc__, rounds=9, shapes=False)
    parser.add_argument("--quick", action="store_true", help="tiny books, one short round")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=[books.system for books in BOOKS],
        help="the models whose books are searched; all by default",
    )
    parser.add_argument(
        "--vectors", nargs="+", type=command_line.positive, help="how many vectors; N"
    )
    options = parser.parse_args(given)
    chosen = [b for b in BOOKS if options.models is None or b.system in options.models]
    chosen = list(QUICK_BOOKS) if options.quick else chosen
    counts = options.vectors or (QUICK_VECTORS if options.quick else VECTORS)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.05)
    cases = [(books, vectors) for books in chosen for vectors in counts]
    with all_threads(1), tqdm(total=len(cases), desc="small", disable=None) as bar:
        entries, residual = [], []
        for books, vectors in cases:
            entries.append(compare(books, vectors, rounds, min_seconds))
            if books.residual:
                residual.append(compare_stages(books, vectors, rounds, min_seconds))
            bar.update()
    record = environment.describe("benchmarks.small", 1) | {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in CONTENDERS},
        "timed_residual": {peer.name: peer.timed for peer in FROZEN_RESIDUAL_PEERS},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
        "residual": residual,
    }
    command_line.publish(record, markdown(record), options, "small")
    return record


if __name__ == "__main__":
    main()
