"""Do large codebooks stay alive, and are they worth it? ``python -m benchmarks.alive``.

The photographs' VQ-VAE with more and more codes, by our recipe and by what vector-quantize-pytorch
advises, on the same crops and the same number of steps. What is there already is not run again.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import results
from vqvae_fast.bench import environment, tables
from vqvae_fast.models import VQVAE
from vqvae_fast.nn import VectorQuantize, code_counts, perplexity

if TYPE_CHECKING:
    from vqvae_fast.training import Evaluation, ImageData

SIZES = (512, 4096, 16384, 65536)
STEPS, SEED = 2000, 0
# Vectors of held-out crops for each of 65536 codes: 16. Fewer could not meet them all.
CROPS = 16384
RECIPES = {
    "ours": "vqvae-fast train --codebook-size K",
    "peer": "VectorQuantize(codebook_dim=16, use_cosine_sim=True, kmeans_init=True, "
    "threshold_ema_dead_code=2), vector-quantize-pytorch's advice on low dimensions, cosine "
    "similarity and expiry; run by our class of that name, whose numbers are the same",
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
            threshold_ema_dead_code=2,
            accept_image_fmap=True,
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        """z [B, D, h, w]."""
        z_q, indices, loss = self.quantizer(z)
        flat = indices.reshape(-1)
        return loss.sum(), z_q, perplexity(code_counts(flat, self.num_codes)), None, flat[:, None]


def train_ours(images: "ImageData", num_codes: int, steps: int) -> VQVAE:
    """By ``vqvae-fast train``."""
    from vqvae_fast.training import TrainConfig, train

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            codebook_size=num_codes,
            steps=steps,
            seed=SEED,
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


def train_peer(images: "ImageData", num_codes: int, steps: int) -> VQVAE:
    """The same encoder, decoder, optimizer and crops, with the peer's quantizer between them."""
    from vqvae_fast.training import TrainConfig
    from vqvae_fast.training.recipe import build_optimizer

    config = TrainConfig(codebook_size=num_codes, steps=steps, seed=SEED, dim=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = VQVAE(n_embeddings=num_codes, embedding_dim=config.dim).train()
        model.vector_quantization = PeerQuantizer(num_codes, config.dim)  # type: ignore[assignment]
        optimizer = build_optimizer(config, model)
        variance = images.variance()
        for step in tqdm(range(steps), desc=f"peer, {num_codes} codes", unit="step", disable=None):
            x = images.batch(SEED, step, config.batch_size)
            optimizer.zero_grad()
            output = model.forward_with_indices(x)
            error = (output.x_hat - x).square().mean()
            (error / variance + output.embedding_loss).backward()
            optimizer.step()
    return model.eval()


TRAINERS: dict[str, Callable[["ImageData", int, int], VQVAE]] = {
    "ours": train_ours,
    "peer": train_peer,
}


def run_one(recipe: str, images: "ImageData", num_codes: int, steps: int, crops: int) -> Any:
    """Train one model and measure it on held-out crops."""
    from vqvae_fast.training import evaluate

    begin = time.monotonic()
    model = TRAINERS[recipe](images, num_codes, steps)
    seconds = time.monotonic() - begin
    found: Evaluation = evaluate(model, images.validation(crops))
    return {
        "recipe": recipe,
        "codes": num_codes,
        "steps": steps,
        "seconds": seconds,
        "mse": found.mse,
        "psnr": found.psnr,
        "codes_used": found.codes_used,
        "perplexity": found.perplexity,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a table, a row a model."""
    rows = [
        (
            str(run["codes"]),
            run["recipe"],
            f"{run['psnr']:.2f}",
            f"{run['mse'] * 1e4:.2f}",
            f"{run['codes_used'] / run['codes']:.1%}",
            f"{run['perplexity']:.0f}",
            f"{run['seconds']:.0f}",
        )
        for run in sorted(record["runs"].values(), key=lambda run: (run["codes"], run["recipe"]))
    ]
    head = ("K", "recipe", "PSNR, dB", "MSE, 1e-4", "codes in use", "perplexity", "seconds")
    return (
        tables.heading(record)
        + f"{record['steps']} steps of 32 crops from: {record['data']}. Measured on "
        f"{record['crops']} held-out crops; a code is in use that any of them chooses. Seconds are "
        "of training, k-means included.\n\n"
        + tables.table(head, rows)
        + "\n"
        + "".join(f"- {name}: {text}\n" for name, text in RECIPES.items())
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run what is not there yet; print the table, and write it after every run."""
    from vqvae_fast.training import open_data

    parser = argparse.ArgumentParser(prog="python -m benchmarks.alive", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--codes", nargs="+", type=int, default=list(SIZES), metavar="K")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--crops", type=int, default=CROPS, help="held-out crops to measure on")
    parser.add_argument("--json", type=Path, metavar="OUT", help="instead of benchmarks/results/")
    options = parser.parse_args(given)
    out = options.json or results.default_path("alive")
    images = open_data("photos")
    asked = {"data": images.description, "steps": options.steps, "crops": options.crops}
    record = environment.describe("benchmarks.alive", torch.get_num_threads()) | asked
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    record["runs"] = kept["runs"] if asked.items() <= kept.items() else {}
    for num_codes in options.codes:
        for recipe in options.only:
            name = f"{recipe}-{num_codes}"
            if name in record["runs"]:
                print(f"{name}: there already")
                continue
            run = run_one(recipe, images, num_codes, options.steps, options.crops)
            record["runs"][name] = run | {"date": record["date"]}
            temporary = out.with_name(f"{out.stem}.part.json")
            results.write(temporary, record, markdown(record))
            os.replace(temporary.with_suffix(".md"), out.with_suffix(".md"))
            os.replace(temporary, out)
            print(f"{name}: {run['psnr']:.2f} dB, {run['codes_used']} codes in use", flush=True)
    print(markdown(record))
    return record


if __name__ == "__main__":
    main()
