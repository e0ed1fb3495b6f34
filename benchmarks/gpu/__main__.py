"""Runs the whole benchmark on a GPU, in under 8 minutes: ``python -m benchmarks.gpu``."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks import command_line, results
from benchmarks.gpu import layer, residual, search, sums
from benchmarks.gpu.device import Gpu, why_not
from benchmarks.gpu.goals import goals
from benchmarks.gpu.report import markdown
from vqvae_fast.bench import environment
from vqvae_fast.bench.data import (
    GPU_LAYER_SHAPES,
    PUBLISHED_SHAPES,
    RESIDUAL_SHAPES,
    SUM_SHAPES,
    TARGET_SHAPES,
    Shape,
    Vectors,
    gaussian,
)
from vqvae_fast.bench.peers import GPU_RESIDUAL_PEERS, GPU_SEARCH_PEERS, LAYER_PEERS, SUM_PEERS

KINDS = ("search", "layer", "sums", "residual")
# No job begins after this many seconds of the 8 minutes; a job that has begun is finished.
_SECONDS = 420.0


class Job(NamedTuple):
    """One entry of the record, still to be measured. ``run`` takes the number of rounds."""

    kind: str
    shape: Shape
    data: str
    dtype: str
    run: Callable[[int], dict[str, Any]]

    @property
    def name(self) -> str:
        """A name for the progress bar and the list of jobs that were left out."""
        return f"{self.kind} {self.shape.name} {self.data} {self.dtype}"


def jobs(options: argparse.Namespace, gpu: Gpu) -> Iterator[Job]:
    """Yield the jobs, those of the goals first: if time is short, the last are left out."""
    wide, narrow = torch.float32, torch.bfloat16
    shapes = options.shapes
    if "search" in options.only:
        for shape in shapes or TARGET_SHAPES:
            yield _search(gpu, shape, wide)
            yield _search(gpu, shape, narrow)
    if "layer" in options.only:
        for shape in shapes or GPU_LAYER_SHAPES:
            yield Job("layer", shape, "Gaussian", "float32", _layer(gpu, shape))
    if "sums" in options.only:
        for shape in shapes or SUM_SHAPES:
            for skewed in (False, True):
                data = "half of the rows in one segment" if skewed else "uniform segments"
                yield Job("segment sum", shape, data, "float32", _sums(gpu, shape, skewed))
    if "residual" in options.only:
        for shape in shapes or RESIDUAL_SHAPES:
            stages = RESIDUAL_SHAPES.get(shape, 2)
            run = _residual(gpu, shape, stages)
            yield Job("residual", shape, f"{stages} stages", "float32", run)
    if "search" in options.only:
        for vectors in command_line.trained(options, wide):
            moved = vectors._replace(
                z=vectors.z.to(gpu.device), codebook=vectors.codebook.to(gpu.device)
            )
            yield _search(gpu, moved.shape, wide, moved)
        for shape in () if shapes else PUBLISHED_SHAPES:
            yield _search(gpu, shape, wide)


def _search(gpu: Gpu, shape: Shape, dtype: torch.dtype, vectors: Vectors | None = None) -> Job:
    def run(rounds: int) -> dict[str, Any]:
        data = vectors or gaussian(shape, dtype, device=gpu.device)
        return search.compare(data, gpu, rounds)

    source = vectors.source if vectors else "Gaussian"
    return Job("search", shape, source, str(dtype).removeprefix("torch."), run)


def _layer(gpu: Gpu, shape: Shape) -> Callable[[int], dict[str, Any]]:
    return lambda rounds: layer.compare(gaussian(shape, device=gpu.device), gpu, rounds)


def _sums(gpu: Gpu, shape: Shape, skewed: bool) -> Callable[[int], dict[str, Any]]:
    return lambda rounds: sums.compare(shape, skewed, gpu, rounds, gpu.device)


def _residual(gpu: Gpu, shape: Shape, stages: int) -> Callable[[int], dict[str, Any]]:
    return lambda rounds: residual.compare(shape, stages, gpu, rounds, gpu.device)


def run(todo: list[Job], gpu: Gpu, rounds: int, seconds: float, out: Path) -> dict[str, Any]:
    """Measure one job after the other, and write the results after each."""
    begin = time.monotonic()
    record: dict[str, Any] = gpu.describe() | {
        "rounds": rounds,
        "limits": gpu.limits(),
        "timed": {p.name: p.timed for p in (*GPU_SEARCH_PEERS, *LAYER_PEERS)}
        | {f"{p.name} (segment sum)": p.timed for p in SUM_PEERS}
        | {f"{p.name} (residual)": p.timed for p in GPU_RESIDUAL_PEERS},
        "left_out": [],
        "results": [],
    }
    for job in tqdm(todo, desc="gpu", unit="job", disable=None):
        if time.monotonic() - begin > seconds:
            record["left_out"].append(f"{job.name}: the {seconds:.0f} seconds were over")
            continue
        record["results"].append(_entry(job, rounds))
        record["seconds"] = round(time.monotonic() - begin, 1)
        finish(record, out)
    return finish(record, out)


def _entry(job: Job, rounds: int) -> dict[str, Any]:
    """Returns the job's record; an error of ours is in it and does not end the other jobs."""
    begin = time.monotonic()
    try:
        entry = job.run(rounds)
    except Exception as error:
        entry = {
            "kind": job.kind,
            "shape": job.shape._asdict(),
            "data": job.data,
            "dtype": job.dtype,
            "contenders": {},
            "failed": {},
            "skipped": {},
            "error": f"{type(error).__name__}: {error}",
        }
    return entry | {"took_seconds": round(time.monotonic() - begin, 1)}


def finish(record: dict[str, Any], out: Path) -> dict[str, Any]:
    """Judge the results so far and write them."""
    judged = goals(record["results"], record["gpu"]["name"])
    record["goals"] = [goal._asdict() for goal in judged]
    results.write(out, record, markdown(record))
    return record


def main(given: list[str] | None = None) -> int:
    """Return the exit status: 0, or 1 if there is no device or an answer of ours was wrong."""
    parser = command_line.parser("benchmarks.gpu", __doc__, rounds=3)
    command_line.add_data_options(parser)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="no job begins after these")
    options = parser.parse_args(given)
    if reason := why_not():
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return 1
    gpu = Gpu()
    out = options.json or results.default_path("gpu", environment.device_slug(gpu.name))
    record = run(list(jobs(options, gpu)), gpu, options.rounds, options.seconds, out)
    print(markdown(record))
    wrong = [entry for entry in record["results"] if "error" in entry]
    for entry in wrong:
        print(f"benchmarks.gpu: {entry['kind']} failed: {entry['error']}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
