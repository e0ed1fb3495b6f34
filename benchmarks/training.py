"""Compares our training recipes with the reference's: ``python -m benchmarks.training``.

Every run sees the same crops for the same seed and is measured by the same function on the same
held-out crops. A run's result is written as soon as it is known, and runs that have a result are
skipped, so you can stop and start at any time. Run one process at a time on one results file.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.reference_training import train_reference
from vqvae_fast.bench import environment, tables
from vqvae_fast.training.pixel_scale import mse_of_pixels

if TYPE_CHECKING:
    from vqvae_fast.training import ImageData

RECIPES = {
    "ema": "vqvae-fast train: EMA codebook, k-means initialisation, dead codes replaced",
    "gradient": "vqvae-fast train --quantizer gradient: the reference's recipe on our search",
    "reference": "the reference's training loop, rebuilt from the article in plain PyTorch",
}
BATCH_SIZE = 32
NUM_CODES = 512
_RECENT_STEPS = 32

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Curve = list[tuple[int, float]]


class Measured(NamedTuple):
    """Figures over many crops: PSNR in dB of pixels in [0, 1], and how the codes are used."""

    psnr: float
    codes_used: int
    perplexity: float


@torch.no_grad()
def measure(forward: Forward, crops: Tensor) -> Measured:
    """Measure a model in eval mode.

    Args:
        forward: x [B, 3, H, W] -> (x_hat like x, indices of any shape).
        crops: [n, 3, H, W] in [-1, 1].
    """
    squares, counts = 0.0, torch.zeros(NUM_CODES, dtype=torch.int64)
    for x in crops.split(BATCH_SIZE):
        x_hat, indices = forward(x)
        squares += float((x_hat - x).double().square().sum())
        counts += torch.bincount(indices.flatten(), minlength=NUM_CODES)
    mse = mse_of_pixels(squares / crops.numel())
    share = counts[counts > 0].double() / counts.sum()
    perplexity = float(torch.exp(-(share * share.log()).sum()))
    return Measured(-10.0 * math.log10(mse), int((counts > 0).sum()), perplexity)


def train_ours(
    recipe: str, images: "ImageData", steps: int, seed: int, out: Path
) -> tuple[Forward, float, Curve]:
    """Train through vqvae_fast.training; a run folder is left in ``out``."""
    from vqvae_fast.training import TrainConfig, train

    config = TrainConfig(
        quantizer=recipe,
        steps=steps,
        seed=seed,
        batch_size=BATCH_SIZE,
        codebook_size=NUM_CODES,
        device="cpu",
        eval_every=steps,  # the time is that of the steps alone
        checkpoint_every=steps,
        out=str(out),
    )
    trained = train(config, images)
    if trained.interrupted:
        raise KeyboardInterrupt

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        output = trained.model.forward_with_indices(x)
        return output.x_hat, output.indices

    lines = (trained.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [line for line in map(json.loads, lines) if "mse" in line]
    return forward, trained.seconds, [(line["step"], line["mse"]) for line in logged]


def _train_reference(images: "ImageData", steps: int, seed: int) -> tuple[Forward, float, Curve]:
    model, seconds, curve = train_reference(
        lambda step: images.batch(seed, step, BATCH_SIZE), images.variance(), steps, seed
    )

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        output = model(x)
        return output.x_hat, output.indices

    return forward, seconds, curve


def run_one(
    recipe: str, images: "ImageData", steps: int, seed: int, crops: int, keep: Path | None
) -> dict[str, Any]:
    """Train one recipe with one seed and measure it."""
    if recipe == "reference":
        forward, seconds, curve = _train_reference(images, steps, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = (keep or Path(folder)) / f"{recipe}-{seed}"
            forward, seconds, curve = train_ours(recipe, images, steps, seed, out)
    recent = range(max(0, steps - _RECENT_STEPS), steps)
    seen = torch.cat([images.batch(seed, step, BATCH_SIZE) for step in recent])
    return {
        "recipe": recipe,
        "seed": seed,
        "steps": steps,
        "seconds": seconds,
        "held_out": measure(forward, images.validation(crops))._asdict(),
        "training": measure(forward, seen)._asdict(),
        "curve": curve,  # (step, mean squared error of the batch, for pixels in [0, 1])
    }


def load(path: Path, steps: int, crops: int) -> dict[str, dict[str, Any]]:
    """Return the runs that have a result, by "recipe-seed".

    Runs of another length, or measured on another number of held-out crops, do not count.
    """
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = record["runs"] if record["crops"] == crops else {}
    return {name: run for name, run in runs.items() if run["steps"] == steps}


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table: a row for each recipe, with the range over the seeds."""
    rows = []
    for recipe in RECIPES:
        runs = [run for run in record["runs"].values() if run["recipe"] == recipe]
        if not runs:
            continue
        cells = [recipe, ", ".join(str(run["seed"]) for run in runs)]
        for place, figure, digits in (
            ("held_out", "psnr", 2),
            ("held_out", "codes_used", 0),
            ("held_out", "perplexity", 0),
            ("training", "codes_used", 0),
        ):
            cells.append(_mean_and_range([run[place][figure] for run in runs], digits))
        cells.append(_mean_and_range([run["seconds"] for run in runs], 0))
        rows.append(cells)
    steps = ", ".join(sorted({str(run["steps"]) for run in record["runs"].values()}))
    head = (
        "recipe",
        "seeds",
        "held-out PSNR, dB",
        f"codes used of {NUM_CODES}, held-out",
        "perplexity, held-out",
        "codes used, last training crops",
        "seconds",
    )
    return (
        tables.heading(record)
        + f"{steps} steps of {BATCH_SIZE} crops of 32x32 from: {record['data']}. Means over the "
        "seeds (lowest to highest). The same seed means the same crops for every recipe; all are "
        f"measured on the same {record['crops']} held-out crops, and on the training crops of the "
        f"last {_RECENT_STEPS} steps.\n\n"
        + tables.table(head, rows)
        + "\n"
        + "".join(f"- {name}: {text}\n" for name, text in RECIPES.items())
    )


def _mean_and_range(values: list[float], digits: int) -> str:
    mean, low, high = (
        f"{v:.{digits}f}" for v in (statistics.mean(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _write(path: Path, record: dict[str, Any]) -> None:
    """Replaces the results as a whole, so that a cut-off file cannot lose a run of minutes."""
    temporary = path.with_name(f"{path.stem}.part.json")
    results.write(temporary, record, markdown(record))
    os.replace(temporary.with_suffix(".md"), path.with_suffix(".md"))
    os.replace(temporary, path)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--crops", type=int, default=1024, help="held-out crops to measure on")
    parser.add_argument("--keep", type=Path, help="keep our run folders here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="instead of benchmarks/results/")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run the missing runs, seed by seed; print the table."""
    from vqvae_fast.training import open_data

    options = _arguments(given)
    out = options.json or results.default_path("training")
    images = open_data("photos")
    runs = load(out, options.steps, options.crops)
    head = environment.describe("benchmarks.training", torch.get_num_threads())
    record = head | {"data": images.description, "crops": options.crops, "runs": runs}
    for seed in options.seeds:
        for recipe in options.only:
            name = f"{recipe}-{seed}"
            if name in runs:
                print(f"{name}: there already")
                continue
            run = run_one(recipe, images, options.steps, seed, options.crops, options.keep)
            runs[name] = run | {"date": head["date"], "revision": head["revision"]}
            _write(out, record)
            print(f"{name}: {run['held_out']['psnr']:.2f} dB in {run['seconds']:.0f} s")
    print(markdown(record))
    return record


if __name__ == "__main__":
    main()
