"""Measures the bytes and the waits of the sharded quantizer's step: ``benchmarks.sharded``.

1, 2 and 4 processes of this machine (gloo, one thread each) share one codebook. Each has its own
N vectors, so that the work grows with the processes, as in data parallel.
"""

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from benchmarks import command_line
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.interleave import summarise
from vqvae_fast.sharded import ShardedVectorQuantizer

SHAPES = (Shape(2048, 65536, 32), Shape(2048, 262144, 32), Shape(1024, 262144, 128))
QUICK = (Shape(64, 64, 8),)
PROCESSES = (1, 2, 4)
# A collective that runs in a ring of W processes makes each of them send this many numbers.
_SENT = {
    "all_gather": lambda number, w: number * (w - 1),
    "all_reduce": lambda number, w: 2 * number * (w - 1) / w,
    "all_to_all_single": None,  # exact: all numbers but those for the process itself
}


class Traffic:
    """Counts the bytes and seconds of the collectives that are called inside its context."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self.seconds = 0.0

    @contextmanager
    def watch(self) -> Iterator["Traffic"]:
        """Replace the collectives by versions that are counted."""
        kept = {name: getattr(dist, name) for name in _SENT}
        for name, collective in kept.items():
            setattr(dist, name, functools.partial(self._counted, name, collective))
        try:
            yield self
        finally:
            for name, collective in kept.items():
                setattr(dist, name, collective)

    def _counted(self, name: str, collective: Callable[..., Any], *given: Any, **named: Any) -> Any:
        group = named.get("group")
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        if name == "all_to_all_single":
            rows, splits = given[1], given[3]
            numbers = (len(rows) - splits[rank]) * (rows.numel() // max(len(rows), 1))
            tensor = rows
        else:
            tensor = given[1] if name == "all_gather" else given[0]
            numbers = _SENT[name](tensor.numel(), world)  # type: ignore[misc]
        self.bytes += numbers * tensor.element_size()
        begin = time.perf_counter()
        result = collective(*given, **named)
        self.seconds += time.perf_counter() - begin
        return result


def measure(shape: Shape, learning: Any, rounds: int) -> dict[str, Any]:
    """Return medians of a training step's seconds and of its parts; runs in each process."""
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(rank)
    layer = ShardedVectorQuantizer(
        shape.k, shape.d, mesh=init_device_mesh("cpu", (world,)), learning=learning
    )
    generator = torch.Generator().manual_seed(1 + rank)
    part = layer.codebook.to_local().detach()
    part.copy_(torch.randn(part.shape, generator=generator))
    if learning == "ema":
        layer.ema.embed_avg.to_local().copy_(part)
    z = torch.randn(shape.n // 64, shape.d, 8, 8, generator=generator, requires_grad=True)
    steps, waits, searches = [], [], []
    search = layer.shards.search
    traffic = Traffic()

    def timed(*given: Any) -> Any:
        begin, before = time.perf_counter(), traffic.seconds
        found = search(*given)
        searches.append(time.perf_counter() - begin - (traffic.seconds - before))
        return found

    layer.shards.search = timed  # type: ignore[method-assign]
    for _ in range(rounds + 1):
        traffic.bytes = traffic.seconds = 0.0
        dist.barrier()
        begin = time.perf_counter()
        with traffic.watch():
            loss, z_q, *_ = layer(z)
            (loss + z_q.square().mean()).backward()
        steps.append(time.perf_counter() - begin)
        waits.append(traffic.seconds)
        layer.zero_grad()
    del layer.shards.search  # breaks a cycle that would keep the mesh's process group
    return {
        "seconds": summarise(steps[1:])._asdict(),
        "communication": summarise(waits[1:])._asdict(),
        "search": summarise(searches[1:])._asdict(),
        "bytes_sent": traffic.bytes,
        "codes_here": layer.shards.count,
    }


def _work(rank: int, world: int, shape: Shape, learning: str, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    figures = measure(shape, learning, rounds)
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def run(shape: Shape, processes: int, learning: str, rounds: int) -> dict[str, Any]:
    """Return the record of one configuration, with the figures of the first process."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(processes, shape, learning, rounds, folder), nprocs=processes)
        figures: dict[str, Any] = json.loads(Path(folder, "figures.json").read_text())
    return {
        "shape": shape._asdict(),
        "processes": processes,
        "learning": learning,
        "bytes_predicted": predicted(shape, processes, learning),
        **figures,
    }


def predicted(shape: Shape, processes: int, learning: str) -> float:
    """Return the bytes that a process sends in a step, by the formulas of docs/scaling.md."""
    n, _, d = shape
    others = processes - 1
    gathered = 4 * n * d * others
    # A distance and an index of every vector are reduced.
    reduced = 2 * (8 + 8) * n * processes * others / processes
    fetched = 4 * n * d * others / processes
    returned = fetched if learning == "gradient" else 0
    return gathered + reduced + fetched + returned


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table."""
    rows = []
    for entry in record["results"]:
        shape, seconds = entry["shape"], entry["seconds"]["median"]
        waits, searches = entry["communication"]["median"], entry["search"]["median"]
        rows.append(
            (
                f"{shape['n']}, {shape['k']}, {shape['d']}",
                entry["learning"],
                str(entry["processes"]),
                str(entry["codes_here"]),
                tables.milliseconds(entry["seconds"]),
                f"{searches / seconds:.0%}",
                f"{waits / seconds:.0%}",
                f"{entry['bytes_sent'] / 2**20:.2f}",
                f"{entry['bytes_predicted'] / 2**20:.2f}",
            )
        )
    head = (
        "N a process, K, D",
        "learning",
        "processes",
        "codes in each",
        "step, ms",
        "search",
        "collectives",
        "sent, MiB",
        "predicted, MiB",
    )
    return (
        tables.heading(record)
        + "A training step of ShardedVectorQuantizer, forward and backward, on Gaussian vectors "
        "and codes; gloo over the loopback device, one thread a process: median (quartiles) of "
        f"{record['rounds']} steps, figures of the first process. Its time in collectives includes "
        "waiting for processes that search longer; where there are more processes than cores, "
        "that is most of it. Sent: bytes that one process sends in a step, counted from what it "
        "hands to the collectives; predicted: by docs/scaling.md.\n\n" + tables.table(head, rows)
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.sharded", __doc__, rounds=7)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one step")
    options = parser.parse_args(given)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    rounds = 1 if options.quick else options.rounds
    entries = [
        run(shape, processes, learning, rounds)
        for shape in shapes
        for learning in ("ema", "gradient")
        for processes in PROCESSES
    ]
    record = environment.describe("benchmarks.sharded", 1)
    record |= {"rounds": rounds, "results": entries}
    command_line.publish(record, markdown(record), options, "sharded")
    return record


if __name__ == "__main__":
    main()
