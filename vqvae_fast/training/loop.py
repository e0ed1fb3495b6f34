"""The training loop, which begins a run or continues it from a checkpoint."""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.checkpoints.tensors import check_tensors
from vqvae_fast.distributed import is_distributed, world_size
from vqvae_fast.errors import UserError
from vqvae_fast.models import VQVAEOutput
from vqvae_fast.training import checkpoint
from vqvae_fast.training.building import build_model, learning_rate, vectors_per_step
from vqvae_fast.training.collection import collection_of, collectors
from vqvae_fast.training.config import TrainConfig, pick_device
from vqvae_fast.training.data import ImageData
from vqvae_fast.training.evaluation import Evaluation, evaluate
from vqvae_fast.training.interrupt import StopRequest
from vqvae_fast.training.optimizer import (
    build_optimizer,
    is_finite,
    load_moments,
    moments_are_finite,
)
from vqvae_fast.training.processes import (
    any_of_all,
    data_parallel,
    is_first,
    of_all,
    rank,
    share,
)
from vqvae_fast.training.progress import Progress
from vqvae_fast.training.runfolder import RESULT, Metrics, Row
from vqvae_fast.training.window import Window

# Steps at the end of a run whose batches are drawn again to count the codes in use.
TRAINING_WINDOW = 32


class StepResult(NamedTuple):
    """One step's loss (recon / variance + embedding loss) and squared error on [-1, 1]."""

    loss: Tensor
    mse: Tensor
    output: VQVAEOutput


class Trainer:
    """A model, its optimizer and its data at some step of a run.

    Everything that a later step depends on is in :meth:`state`; the loop only calls the methods in
    their order.
    """

    def __init__(self, config: TrainConfig, data: ImageData, variance: float) -> None:
        """Build the model at step 0; torch's generator must have been seeded."""
        if data.crop % 2**config.downsampling:
            raise UserError(
                f"crop must be a multiple of {2**config.downsampling} for {config.downsampling} "
                f"halvings, got {data.crop}"
            )
        self.config, self.data, self.variance = config, data, variance
        self.device = pick_device(config.device)
        self.autocast = torch.bfloat16 if config.dtype == "bf16" else None
        if config.batch_size < world_size():
            raise UserError(
                f"batch_size must be at least the number of processes, {world_size()}, "
                f"got {config.batch_size}"
            )
        self.model = build_model(config, data).to(self.device)
        self.optimizer = build_optimizer(config, self.model)
        self.window = Window(config.codebook_size, self.device)
        self.held_out = data.validation(config.eval_crops).to(self.device)
        self.step = 0
        # How far k-means' collection is; None once the codebook has its codes.
        self.collection = collection_of(self.model)
        self._model = data_parallel(self.model)
        self._forward = torch.compile(self._loss) if config.compile else self._loss

    def _loss(self, x: Tensor) -> StepResult:
        """The forward pass and the loss of a step, which torch.compile takes as one function."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = self._model(x)
        # The mean of this process's share, scaled so that all processes add up to the batch's.
        part = len(x) / self.config.batch_size
        mse = (output.x_hat.float() - x).square().mean() * part
        return StepResult(mse / self.variance + output.embedding_loss * part, mse, output)

    def advance(self) -> Row | None:
        """Do one step; return a row of metrics if one is due."""
        config = self.config
        part = share(config.batch_size)
        x = self.data.batch(config.seed, self.step, config.batch_size, part).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.data, self.step)
        self.optimizer.zero_grad()
        try:
            result = self._forward(x)
            # The processes' losses are to be added, but their gradients are averaged.
            (result.loss * world_size()).backward()
        except RuntimeError as error:
            if not _from_compiler(error):
                raise
            raise UserError(f"torch.compile does not work here: {_essence(error)}") from error
        self.optimizer.step()
        self.step += 1
        if self.collection is not None:
            self.collection = collection_of(self.model)
        has_codes = self.collection is None
        self.window.add(*result, is_finite(self.model), has_codes)
        measured = self.step % config.eval_every == 0
        if not measured and self.step % config.log_every:
            return None
        self.check_finite()
        row: Row = {"step": self.step, **self.window.read()}
        if measured:
            held_out = self.evaluate(self.held_out) if has_codes else None
            row |= {
                "held_out_mse": held_out and held_out.mse,
                "held_out_psnr": held_out and held_out.psnr,
                "held_out_codes_used": held_out and held_out.codes_used,
            }
        if self.collection is not None:
            collected, wanted = self.collection
            row |= {"kmeans_collected": collected, "kmeans_samples": wanted}
        return row

    def first_step_with_codes(self) -> int:
        """The step in which k-means gets its last vectors; the present one if it has them all."""
        if self.collection is None:
            return self.step
        missing = self.collection.wanted - self.collection.collected
        return self.step - (-missing // vectors_per_step(self.config, self.data))

    def check_finite(self) -> None:
        """Raise UserError if a step has diverged, in all processes alike; waits for the device.

        The flags of the steps stay on the device until something else has to be fetched from it:
        a row of metrics, or a checkpoint, which must not hold a model that has diverged.
        """
        late = self.window.steps_since_divergence()
        if late:
            first = self.step - late + 1
            raise UserError(_diverged(first, "the loss or a weight became NaN or Inf"))
        if not moments_are_finite(self.optimizer):
            raise UserError(_diverged(self.step, "Adam's averages have become NaN or Inf"))

    def evaluate(self, images: Tensor) -> Evaluation:
        """Measure the model as it is now; raises UserError if its weights have exploded."""
        found = evaluate(
            self.model,
            images,
            batch_size=self.config.batch_size,
            autocast=self.autocast,
            divided=True,
        )
        if not math.isfinite(found.mse):
            raise UserError(_diverged(self.step, f"the reconstruction error became {found.mse}"))
        return found

    def recent_batches(self) -> Tensor:
        """The training crops of the last steps, [n, C, crop, crop]."""
        steps = range(max(0, self.step - TRAINING_WINDOW), max(1, self.step))
        size = self.config.batch_size
        return torch.cat([self.data.batch(self.config.seed, step, size) for step in steps])

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        return {
            "config": self.config.to_dict(),
            "model_config": self.model.config,
            "model": self.model.state_dict(),
            "samples": {name: part.samples for name, part in collectors(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": of_all(checkpoint.random_state(self.device)),
            "window": self.window.state(),
            "variance": self.variance,
        }

    def load(self, state: dict[str, Any], run: Path) -> None:
        """Continue from :meth:`state`, torch's generators included.

        Raises:
            UserError: the state is not one of this config and data.
        """
        if state["variance"] != self.variance:
            raise UserError(
                f"the data is not what {run} was trained on: its variance was "
                f"{state['variance']:.6g}, now it is {self.variance:.6g}"
            )
        try:
            checkpoint.load_weights(self.model, state["model"])
            self._load_samples(state.get("samples", {}))
            self.collection = collection_of(self.model)
            load_moments(self.optimizer, state["optimizer"], state["step"])
            self.window.load(state["window"])
            self.step = state["step"]
            states = state["random"]
            # With another number of processes the run cannot repeat their random numbers.
            own = states[rank() if len(states) == world_size() else 0]
            checkpoint.set_random_state(own, self.device)
        except ValueError as error:
            raise UserError(
                f"the checkpoint of {run} does not fit its config.json: {error}"
            ) from error

    def _load_samples(self, samples: object) -> None:
        if not isinstance(samples, dict):
            raise ValueError(f"samples must be a dict, got {type(samples).__name__}")
        check_tensors(samples)
        for name, part in collectors(self.model).items():
            if name in samples:
                part.load_samples(samples[name])


def _diverged(step: int, what: str) -> str:
    return (
        f"training diverged: at step {step} {what}; choose a smaller lr. The checkpoint of the run "
        "is of an earlier step"
    )


def _from_compiler(error: RuntimeError) -> bool:
    """Whether torch.compile raised it, by its module's name: importing the class takes a second."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _essence(error: Exception) -> str:
    """The line of a compiler's message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class Steps(NamedTuple):
    """Result of :func:`run_steps`.

    Attributes:
        done: number of steps that this call has done.
        seconds: time that they took.
        interrupted: whether a signal ended the run early.
    """

    done: int
    seconds: float
    interrupted: bool


def run_steps(trainer: Trainer, run: Path, progress: bool | None) -> Steps:
    """Train up to the config's last step, with metrics and checkpoints.

    At the end there is a checkpoint of the last step done, also if a signal ended the run.
    """
    config, first = trainer.config, trainer.step
    metrics = Metrics(run, upto=first) if is_first() else None
    if is_first():  # the results of a shorter run do not describe the model that follows
        (run / RESULT).unlink(missing_ok=True)
    started = time.monotonic()
    trainer.model.train()
    shown = progress if is_first() else False
    bar = Progress(first, config.steps, config.batch_size, config.codebook_size, shown)
    with StopRequest(patient=is_distributed()) as stop, bar:
        while trainer.step < config.steps and not _agreed(stop, trainer):
            row = trainer.advance()
            if row is not None and metrics is not None:
                metrics.add(row)
                bar.show(row)
            bar.step()
            if trainer.step % config.checkpoint_every == 0:
                save(run, trainer)
        save(run, trainer)
    seconds = time.monotonic() - started
    return Steps(trainer.step - first, seconds, trainer.step < config.steps)


def save(run: Path, trainer: Trainer) -> None:
    """Replace the run's checkpoint; all processes call it, the first one writes.

    Raises:
        UserError: training has diverged; the checkpoint stays as it was.
    """
    trainer.check_finite()
    # After the last step weights may be finite, but too large for a finite output.
    trainer.evaluate(trainer.held_out[: trainer.config.batch_size])
    state = trainer.state()
    if is_first():
        checkpoint.save_checkpoint(run, state)


def _agreed(stop: StopRequest, trainer: Trainer) -> bool:
    """Whether to stop; several processes agree to stop behind the same step."""
    if not is_distributed():
        return stop.requested
    return trainer.step % trainer.config.log_every == 0 and any_of_all(stop.requested)
