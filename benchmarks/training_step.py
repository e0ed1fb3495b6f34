"""Times a training step of our VQ-VAE and the reference's: ``benchmarks.training_step``.

The sizes are the article's: images of 32 x 32 pixels, 128 channels, two residual layers of 32,
codes of 64 numbers. A step is forward, loss, backward and Adam; the quantizer's part of it is timed
alone, on the latents of the same model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.reference_vqvae import ReferenceVQVAE, reference_optimizer
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers.base import training_step
from vqvae_fast.bench.threads import all_threads
from vqvae_fast.models import VQVAE

BATCH, DIM = 128, 64
CODES = (512, 8192)
REFERENCE = "reference"


class Contender(NamedTuple):
    """A model and the functions that train it.

    Attributes:
        model: a module with the parts ``encoder``, ``pre_quantization_conv``,
            ``vector_quantization``.
        outputs: images -> (reconstruction, embedding loss).
        quantize: latents -> (quantized, loss).
    """

    model: nn.Module
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]]
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]


def contender(name: str, num_codes: int) -> Contender:
    """Return a model from one seed, in training mode."""
    torch.manual_seed(0)
    if name == REFERENCE:
        reference = ReferenceVQVAE(num_codes=num_codes).train()

        def quantize_reference(z: Tensor) -> tuple[Tensor, Tensor]:
            found = reference.vector_quantization(z)
            return found.quantized, found.loss

        return Contender(reference, lambda x: reference(x)[:2], quantize_reference)
    learning = {"ours (EMA)": "ema", "ours (gradient)": "gradient"}[name]
    model = VQVAE(n_embeddings=num_codes, quantizer={"learning": learning}).train()

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        found = model.forward_with_indices(x)
        return found.x_hat, found.embedding_loss

    def quantize(z: Tensor) -> tuple[Tensor, Tensor]:
        loss, quantized, *_ = model.vector_quantization(z)
        return quantized, loss

    return Contender(model, outputs, quantize)


NAMES = ("ours (EMA)", "ours (gradient)", REFERENCE)


def whole_step(of: Contender, images: Tensor) -> Callable[[], Tensor]:
    """Return a call that runs forward, backward and Adam and returns the loss."""
    optimizer = reference_optimizer(of.model)

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        x_hat, embedding_loss = of.outputs(images)
        loss = functional.mse_loss(x_hat, images) + embedding_loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def quantizer_step(of: Contender, images: Tensor) -> Callable[[], Any]:
    """Return a call of the quantizer's forward and backward on the model's present latents."""
    with torch.no_grad():
        latents = of.model.pre_quantization_conv(of.model.encoder(images))  # type: ignore[operator]
    step = training_step(of.quantize, latents)

    def call() -> Any:
        of.model.zero_grad(set_to_none=True)
        return step()

    return call


def compare(num_codes: int, batch: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of one codebook size."""
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    contenders = {name: contender(name, num_codes) for name in NAMES}
    steps = {name: whole_step(of, images) for name, of in contenders.items()}
    losses = {name: float(step()) for name, step in steps.items()}
    timings = interleaved(steps, rounds, min_seconds=min_seconds)
    alone = interleaved(
        {name: quantizer_step(of, images) for name, of in contenders.items()},
        rounds,
        min_seconds=min_seconds,
    )
    return {
        "shape": Shape(batch * 64, num_codes, DIM)._asdict(),
        "contenders": {
            name: {
                "seconds": timing._asdict(),
                "quantizer_seconds": alone[name]._asdict(),
                "quantizer_share": alone[name].median / timing.median,
                "first_loss": losses[name],
                "reference_over_it": ratio(timing, timings[REFERENCE])._asdict(),
            }
            for name, timing in timings.items()
        },
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    parts = [
        tables.heading(record),
        f"One training step on {record['batch']} images of 32 x 32 pixels (64 latents each, D = "
        f"{DIM}): forward, loss, backward, Adam. Times are milliseconds: median (quartiles) of "
        f"{record['rounds']} interleaved rounds. The quantizer is timed alone, forward and "
        "backward with its codebook's learning, on the model's latents; its share is of the whole "
        "step.\n",
    ]
    for entry in record["results"]:
        parts.append(f"\n## K={entry['shape']['k']}\n\n")
        rows = [
            (
                name,
                tables.milliseconds(line["seconds"]),
                tables.milliseconds(line["quantizer_seconds"]),
                tables.share(line["quantizer_share"]),
                tables.times(line["reference_over_it"]),
            )
            for name, line in entry["contenders"].items()
        ]
        head = ("model", "step, ms", "quantizer, ms", "share", "faster than the reference")
        parts.append(tables.table(head, rows))
    return "".join(parts)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.training_step", __doc__, rounds=5)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.3)
    batch, codes = (2, (16,)) if options.quick else (BATCH, CODES)
    with all_threads(options.threads):
        entries = [
            compare(k, batch, rounds, min_seconds)
            for k in tqdm(codes, desc="training step", disable=None)
        ]
    record = environment.describe("benchmarks.training_step", options.threads)
    record |= {"rounds": rounds, "batch": batch, "results": entries}
    command_line.publish(record, markdown(record), options, "training_step")
    return record


if __name__ == "__main__":
    main()
