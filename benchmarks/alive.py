"""Measures codes in use and errors of large codebooks: ``python -m benchmarks.alive``.

It trains the photographs' VQ-VAE with more and more codes, by our recipe and by the one that
vector-quantize-pytorch advises, on the same crops and with the same number of steps. It uses
several seeds, because one alone may differ by a tenth of a decibel. Runs that have a result are
skipped.

Strips all over the photographs are held out. ``vqvae-fast train`` holds out the right-hand part of
a photograph, but that shows other things than the rest, and the number of codes in use should
describe the codebook. The number of held-out vectors grows with the codes, so each code gets
equally many in the average.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import results
from vqvae_fast.bench import environment, tables
from vqvae_fast.models import VQVAE
from vqvae_fast.nn import VectorQuantize, code_counts, perplexity

if TYPE_CHECKING:
    from vqvae_fast.training import Evaluation, ImageData
    from vqvae_fast.training.data.crops import Regions

SIZES = (512, 4096, 16384, 65536)
STEPS, SEEDS = 3000, (0, 1, 2)
# The encoder's vectors have this length. Our recipe chooses its own; the peer's module projects
# them.
DIM = 64
VECTORS_PER_CODE, VECTORS_PER_CROP, VECTORS_PER_STEP = 128, 64, 2048
# The error is measured on this many crops, the same for all runs; a chunk of them is encoded at a
# time.
ERROR_CROPS, CHUNK = 8192, 1024
# All runs draw the held-out crops with this seed.
HELD_OUT_SEED = 0
# Every fifth strip of this width in pixels is held out.
STRIP = 40
RECIPES = {
    "ours": "vqvae-fast train --codebook-size K",
    "peer": "VectorQuantize(codebook_dim=16, use_cosine_sim=True, kmeans_init=True, decay=0.99, "
    "threshold_ema_dead_code=N / 2K), vector-quantize-pytorch's advice on low dimensions, cosine "
    "similarity and expiry (its usual threshold of 2 would replace all codes in every step, where "
    "K is large), a longer memory than its usual 0.8, which was worse, and our learning rates; run "
    "by our class of that name, whose numbers are the same",
}


class PeerQuantizer(nn.Module):
    """vector-quantize-pytorch's module with VectorQuantizer's results."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.quantizer = VectorQuantize(
            dim,
            num_codes,
            codebook_dim=16,
            use_cosine_sim=True,
            kmeans_init=True,
            decay=0.99,
            threshold_ema_dead_code=VECTORS_PER_STEP / (2 * num_codes),
            accept_image_fmap=True,
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        """Quantize z [B, D, h, w]."""
        z_q, indices, loss = self.quantizer(z)
        flat = indices.reshape(-1)
        return loss.sum(), z_q, perplexity(code_counts(flat, self.num_codes)), None, flat[:, None]

    def encode(self, z: Tensor) -> Tensor:
        """Return indices [B, h, w] of z [B, D, h, w], in eval mode."""
        indices: Tensor = self.quantizer(z)[1]
        return indices


def scattered(images: "ImageData") -> "ImageData":
    """Return the photographs with every fifth strip held out."""
    wholes = images.train.images
    train, held_out = [], []
    for image in range(len(wholes)):
        height, width = wholes[image].shape[:2]
        strips = [(left, left + STRIP) for left in range(2 * STRIP, width - STRIP, 5 * STRIP)]
        held_out += [(image, 0, left, height, right - left) for left, right in strips]
        edges = [0, *(edge for strip in strips for edge in strip), width]
        train += [
            (image, 0, left, height, right - left)
            for left, right in zip(edges[::2], edges[1::2], strict=True)
            if right - left >= images.crop
        ]
    return dataclasses.replace(
        images,
        train=dataclasses.replace(images.train, boxes=np.array(train)),
        held_out=dataclasses.replace(images.held_out, boxes=np.array(held_out)),
        description=f"{len(wholes)} photographs, every fifth strip of {STRIP} pixels held out",
    )


def train_ours(images: "ImageData", num_codes: int, steps: int, seed: int) -> VQVAE:
    """Train as ``vqvae-fast train`` does."""
    from vqvae_fast.training import TrainConfig, train

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            codebook_size=num_codes,
            steps=steps,
            seed=seed,
            device="cpu",
            eval_every=steps,
            checkpoint_every=steps,
            eval_crops=64,
            out=str(Path(folder, "run")),
        )
        trained = train(config, images)
    if trained.interrupted:
        raise KeyboardInterrupt
    return trained.model


def train_peer(images: "ImageData", num_codes: int, steps: int, seed: int) -> VQVAE:
    """Train the same model with the peer's quantizer, by the same optimizer and crops."""
    from vqvae_fast.training import TrainConfig
    from vqvae_fast.training.recipe import build_optimizer, learning_rate

    config = TrainConfig(codebook_size=num_codes, steps=steps, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQVAE(n_embeddings=num_codes, embedding_dim=DIM).train()
        model.vector_quantization = PeerQuantizer(num_codes, DIM)  # type: ignore[assignment]
        optimizer = build_optimizer(config, model)
        variance = images.variance()
        for step in tqdm(range(steps), desc=f"peer, {num_codes} codes", unit="step", disable=None):
            x = images.batch(seed, step, config.batch_size)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, images, step)
            optimizer.zero_grad()
            output = model.forward_with_indices(x)
            error = (output.x_hat - x).square().mean()
            (error / variance + output.embedding_loss).backward()
            optimizer.step()
    return model.eval()


TRAINERS: dict[str, Callable[["ImageData", int, int, int], VQVAE]] = {
    "ours": train_ours,
    "peer": train_peer,
}


def counted(model: VQVAE, regions: "Regions", num_codes: int, side: int) -> Tensor:
    """Count how often crops of the regions choose each code: VECTORS_PER_CODE times on average."""
    rng, counts = np.random.default_rng(HELD_OUT_SEED), torch.zeros(num_codes, dtype=torch.int64)
    left = -(-VECTORS_PER_CODE * num_codes // VECTORS_PER_CROP)
    while left:
        crops = regions.crops(rng, min(CHUNK, left), side, 3)
        with torch.no_grad():
            for batch in crops.split(32):
                counts += code_counts(model.encode(batch), num_codes)
        left -= len(crops)
    return counts


def run_one(recipe: str, images: "ImageData", num_codes: int, steps: int, seed: int) -> Any:
    """Train one model and measure it."""
    from vqvae_fast.training import evaluate

    begin = time.monotonic()
    model = TRAINERS[recipe](images, num_codes, steps, seed)
    seconds = time.monotonic() - begin
    found: Evaluation = evaluate(model, images.validation(ERROR_CROPS))
    held_out, train = (
        counted(model, regions, num_codes, images.crop)
        for regions in (images.held_out, images.train)
    )
    return {
        "recipe": recipe,
        "codes": num_codes,
        "steps": steps,
        "seed": seed,
        "seconds": seconds,
        "mse": found.mse,
        "psnr": found.psnr,
        "codes_used": int((held_out > 0).sum()),
        "codes_used_in_training": int((train > 0).sum()),
        "perplexity": float(perplexity(held_out)),
    }


def by_model(record: dict[str, Any]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Group the runs, one for each seed, by number of codes and recipe."""
    models: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in record["runs"].values():
        models.setdefault((run["codes"], run["recipe"]), []).append(run)
    return dict(sorted(models.items()))


def _row(num_codes: int, recipe: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    def mean(name: str) -> float:
        return statistics.fmean(run[name] for run in runs)

    errors = [run["mse"] * 1e4 for run in runs]
    return (
        str(num_codes),
        recipe,
        f"{mean('psnr'):.2f}",
        f"{statistics.fmean(errors):.2f} ({min(errors):.2f}-{max(errors):.2f})",
        f"{mean('codes_used') / num_codes:.1%}",
        f"{mean('codes_used_in_training') / num_codes:.1%}",
        f"{mean('perplexity'):.0f}",
    )


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table, a row for each number of codes and recipe."""
    rows = [_row(*model, runs) for model, runs in by_model(record).items()]
    head = (
        "K",
        "recipe",
        "PSNR, dB",
        "MSE, 1e-4 (from-to)",
        "codes in use, held out",
        "where it trained",
        "perplexity",
    )
    seeds = ", ".join(
        str(seed) for seed in sorted({run["seed"] for run in record["runs"].values()})
    )
    return (
        tables.heading(record)
        + f"{record['steps']} steps of 32 crops from: {record['data']}. Means over the seeds "
        f"{seeds}. The error is that of {ERROR_CROPS} held-out crops. A code is in use that any of "
        f"{VECTORS_PER_CODE} K vectors chooses, of held-out crops or of other crops from where it "
        "trained; the perplexity is of the former.\n\n"
        + tables.table(head, rows)
        + "\n"
        + "".join(f"- {name}: {text}\n" for name, text in RECIPES.items())
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run the missing runs; print the table, and write it after every run."""
    from vqvae_fast.training import open_data

    parser = argparse.ArgumentParser(prog="python -m benchmarks.alive", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--codes", nargs="+", type=int, default=list(SIZES), metavar="K")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--json", type=Path, metavar="OUT", help="instead of benchmarks/results/")
    options = parser.parse_args(given)
    out = options.json or results.default_path("alive")
    images = scattered(open_data("photos"))
    asked = {"data": images.description, "steps": options.steps}
    record = environment.describe("benchmarks.alive", torch.get_num_threads()) | asked
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    record["runs"] = kept["runs"] if asked.items() <= kept.items() else {}
    for seed, num_codes, recipe in itertools.product(options.seeds, options.codes, options.only):
        name = f"{recipe}-{num_codes}-{seed}"
        if name in record["runs"]:
            print(f"{name}: there already")
            continue
        run = run_one(recipe, images, num_codes, options.steps, seed)
        record["runs"][name] = run | {key: record[key] for key in ("date", "revision")}
        temporary = out.with_name(f"{out.stem}.part.json")
        results.write(temporary, record, markdown(record))
        os.replace(temporary.with_suffix(".md"), out.with_suffix(".md"))
        os.replace(temporary, out)
        print(f"{name}: {run['psnr']:.2f} dB, {run['codes_used']} codes in use", flush=True)
    print(markdown(record))
    return record


if __name__ == "__main__":
    main()
