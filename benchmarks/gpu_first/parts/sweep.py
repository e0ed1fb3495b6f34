"""Compares tile shapes; the fastest one with right answers goes into a file of tiles.

``VQVAE_FAST_TILES`` makes the package read that file, which `vqvae_fast.backends.triton.tiles`
describes. The table in configurations.py can be set from it after a review.
"""

import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast.backends.triton.configurations import Configuration, configuration
from vqvae_fast.bench import environment
from vqvae_fast.bench.data import Shape

_DTYPE = torch.float16
_DIMS = (64, 256, 8, 128, 32)
_SIZES = {
    "block_rows": (64, 128, 256),
    "block_codes": (64, 128, 256),
    "group": (4, 8, 16),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4),
}
# These changes only make sense together.
_PAIRS: tuple[dict[str, int], ...] = (
    {"block_rows": 64, "num_warps": 4},
    {"block_rows": 64, "block_codes": 256},
    {"block_codes": 64, "num_stages": 4},
    {"block_codes": 256, "group": 16, "num_stages": 2},
)


def candidates(base: Configuration) -> Iterator[Configuration]:
    """Yield the table's configuration, then those that differ in one size, then pairs."""
    seen = set()
    changes = [{}, *({name: size} for name, sizes in _SIZES.items() for size in sizes), *_PAIRS]
    for change in changes:
        made = base._replace(**change)
        if made not in seen and made.group <= made.block_codes:
            seen.add(made)
            yield made


def tiles(arch: int | str, best: dict[int, Configuration], about: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of the file of tiles."""
    table = {str(block): config._asdict() for block, config in sorted(best.items())}
    return {"about": about, "architectures": {str(arch): {"float16": table}}}


def steps(setting: Setting) -> list[Step]:
    """Return a step for each D; each adds to the file."""
    folder = setting.out / "tiles"
    folder.mkdir(parents=True, exist_ok=True)
    rehearse = setting.rehearse
    arch: int | str = (
        "interpreter" if rehearse else triton.runtime.driver.active.get_current_target().arch
    )
    best: dict[int, Configuration] = _found_before(setting.out / "tiles.json", arch)

    def sweep(dim: int, emit: Emit) -> None:
        base = configuration(dim, _DTYPE)
        shape = Shape(40, 72, dim) if rehearse else Shape(65536, 8192, dim)
        chosen = list(candidates(base))[: 2 if rehearse else None]
        times: dict[Configuration, float] = {}
        with ThreadPoolExecutor(min(len(chosen), environment.cores())) as pool:
            jobs = {}
            for number, config in enumerate(chosen):
                file = folder / f"D{dim}-{number}.json"
                file.write_text(json.dumps(tiles(arch, {base.block_dim: config}, {})))
                jobs[pool.submit(_time, shape, file, rehearse)] = config
            for job in as_completed(jobs):
                config, (us, why) = jobs[job], job.result()
                times[config] = us
                note = "the package's own" if config == base else why
                emit(**config._asdict(), us=us if math.isfinite(us) else None, note=note)
                fastest = min(times, key=lambda c: times[c])
                if math.isfinite(times[fastest]):
                    best[base.block_dim] = fastest
                    about = {"N": shape.n, "K": shape.k, "rehearsal": rehearse}
                    _write(setting.out / "tiles.json", tiles(arch, best, about))
        if not math.isfinite(min(times.values())):
            raise RuntimeError("no candidate ran and was right")

    return [
        Step(f"D={dim}", 240, lambda emit, dim=dim: sweep(dim, emit))
        for dim in (_DIMS[2:3] if rehearse else _DIMS)
    ]


def _found_before(path: Path, arch: int | str) -> dict[int, Configuration]:
    """Returns the configurations that an earlier process of this part wrote before it crashed."""
    try:
        table = json.loads(path.read_text())["architectures"][str(arch)]["float16"]
    except (OSError, ValueError, KeyError):
        return {}
    return {int(block): Configuration(**entry) for block, entry in table.items()}


def _time(shape: Shape, file: Path, rehearse: bool) -> tuple[float, str]:
    """Returns microseconds and "", or infinity and why: a candidate may not fit the device."""
    command = [sys.executable, "-m", "benchmarks.gpu_first.one_tile", ",".join(map(str, shape))]
    command += ["--lock", str(file.with_name("lock")), *(["--rehearse"] if rehearse else [])]
    status, words = tool.run(command, VQVAE_FAST_TILES=str(file))
    last = (words.splitlines() or ["it said nothing"])[-1]
    if status:
        return math.inf, last[:80]
    found = json.loads(last)
    if found["violating"]:
        return math.inf, f"WRONG: {found['violating']:.2%} of the rows"
    return found["us"], ""


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
