"""train() and resume(): a whole run, from the config to the pictures."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from vqvae_fast.distributed import world_size
from vqvae_fast.errors import UserError
from vqvae_fast.models import VQVAE
from vqvae_fast.training import pictures
from vqvae_fast.training.checkpoint import load_checkpoint, save_checkpoint
from vqvae_fast.training.config import TrainConfig, pick_device
from vqvae_fast.training.data import ImageData, absolute_source, open_data, source_label
from vqvae_fast.training.evaluation import Evaluation
from vqvae_fast.training.loop import Trainer, run_steps
from vqvae_fast.training.processes import in_all, in_first, is_first
from vqvae_fast.training.runfolder import (
    CONFIG,
    RESULT,
    new_run,
    open_run,
    read_config,
    read_metrics,
    write_json,
)
from vqvae_fast.training.runlock import locked

_PREVIEW_IMAGES = 8


class TrainResult(NamedTuple):
    """Result of :func:`train` and :func:`resume`.

    Attributes:
        run: the run folder.
        model: the trained model, in eval mode.
        step: steps done.
        interrupted: a signal ended the run early.
        seconds: time of the steps done by this call.
        held_out: figures on the fixed held-out crops; None if the run was interrupted, or has
            ended before k-means had its vectors, so that there are no codes.
        training: figures on the training crops of the last 32 steps, drawn again; or None, too.
    """

    run: Path
    model: VQVAE
    step: int
    interrupted: bool
    seconds: float
    held_out: Evaluation | None
    training: Evaluation | None


def train(
    config: TrainConfig | None = None,
    data: "Dataset[Any] | ImageData | None" = None,
    *,
    validation: "Dataset[Any] | None" = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train a VQ-VAE and leave a run folder.

    The folder gets config.json, metrics.jsonl, checkpoint.pt, and at the end result.json,
    reconstructions.png, curves.png and usage.png. While it is written it is locked (.lock): a
    second process is refused. SIGINT (Ctrl-C) and SIGTERM end the run after
    the step in progress, with a checkpoint. The caller's random state is left as it was.

    Args:
        config: what to train; None takes the defaults.
        data: any map-style Dataset of images (see :func:`open_data`), instead of ``config.data``.
        validation: a Dataset to measure on; None holds a share of ``data`` out.
        progress: a progress bar; None decides by whether stderr is a terminal.
        say: takes lines about the run, for instance ``print``.

    Raises:
        UserError: the config, the data or the run folder is not usable, or training diverged.
    """
    config = config or TrainConfig()
    config = dataclasses.replace(config, device=str(pick_device(config.device)))
    images = _open(config, data, validation)
    config = dataclasses.replace(config, data=absolute_source(config.data))
    with torch.random.fork_rng(devices=_gpus(config)):
        torch.manual_seed(config.seed)
        trainer = Trainer(config, images, images.variance())
        # What cannot be drawn, or is beyond all memory, fails here, before there is a folder.
        images.batch(config.seed, 0, config.batch_size)
        label = "dataset" if data is not None else source_label(config.data)
        state = trainer.state()

        def fill(folder: Path) -> None:
            save_checkpoint(folder, state)  # whatever ends the run, it can be resumed
            write_json(folder / CONFIG, config.to_dict())  # last: it makes the folder a run

        new = new_run(config.out, f"{label}-{config.quantizer}", fill)
        with ExitStack() as lock:
            run = in_first(lambda: lock.enter_context(new))
            return _finish(trainer, run, progress, say)


def resume(
    run: str | Path,
    data: "Dataset[Any] | ImageData | None" = None,
    *,
    validation: "Dataset[Any] | None" = None,
    steps: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Continue a run from its checkpoint, on the trajectory that it would have taken.

    Args:
        run: a run folder.
        data: the Dataset that it was trained on, if it was one.
        validation: as in :func:`train`.
        steps: a new last step, to train longer; None keeps the run's. With a large codebook the
            learning rate goes on as in a run of so many steps.
        device: another device; None keeps the run's.
        progress: as in :func:`train`.
        say: as in :func:`train`.

    Raises:
        UserError: not a run folder, one that another process writes to, a damaged file in it,
            other data, nothing left to do, or training diverged.
    """
    path = open_run(run)
    with ExitStack() as lock:
        in_first(lambda: lock.enter_context(locked(path)))
        return _resume(path, data, validation, steps, device, progress, say)


def _resume(
    path: Path,
    data: "Dataset[Any] | ImageData | None",
    validation: "Dataset[Any] | None",
    steps: int | None,
    device: str | None,
    progress: bool | None,
    say: Callable[[str], None],
) -> TrainResult:
    """:func:`resume`, for whoever holds the lock: nothing in the folder changes meanwhile."""
    config = read_config(path)
    changes: dict[str, Any] = {"steps": steps, "device": device}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    config = dataclasses.replace(config, device=str(pick_device(config.device)))
    state = load_checkpoint(path, "cpu")
    if state["step"] > config.steps or (state["step"] == config.steps and (path / RESULT).exists()):
        raise UserError(
            f"{path} is at step {state['step']} of {config.steps} already; "
            "give more --steps to train on"
        )
    images = _open(config, data, validation)
    with torch.random.fork_rng(devices=_gpus(config)):
        torch.manual_seed(config.seed)
        trainer = Trainer(config, images, images.variance())
        trainer.load(state, path)
        read_metrics(path)  # what cannot be read fails before anything is written
        if is_first():
            write_json(path / CONFIG, config.to_dict())
            say(f"resuming at step {trainer.step}")
        return _finish(trainer, path, progress, say)


def _finish(
    trainer: Trainer, run: Path, progress: bool | None, say: Callable[[str], None]
) -> TrainResult:
    """Train to the end, then measure and draw.

    A run that ends before k-means has its vectors leaves a model without codes. It is told, not
    refused: the run may be continued with more steps, on the trajectory of a longer one.
    """
    if not is_first():
        say = _say_nothing
    say(f"data    {trainer.data.description}")
    count = torch.get_num_threads()
    threads = f" ({count} thread{'s' * (count > 1)})" if trainer.device.type == "cpu" else ""
    others = f", {world_size()} processes" if world_size() > 1 else ""
    say(f"device  {trainer.device}{threads}{others}")
    say(f"run     {run}")
    needed = trainer.first_step_with_codes()
    if trainer.collection is not None and needed > trainer.config.steps:
        say(
            f"note    k-means makes the codebook of the first {trainer.collection.wanted} vectors, "
            f"which takes {needed} steps: after {trainer.config.steps} the model has no codes yet"
        )
    # What a shorter run has measured is not true of the model that follows.
    if is_first():
        (run / RESULT).unlink(missing_ok=True)
    first = trainer.step
    interrupted, seconds = run_steps(trainer, run, progress)
    model = trainer.model.eval()
    if interrupted:
        return TrainResult(run, model, trainer.step, True, seconds, None, None)
    held_out = training = None
    if trainer.collection is None:
        held_out = trainer.evaluate(trainer.held_out)
        training = trainer.evaluate(trainer.recent_batches())
    images = (trainer.step - first) * trainer.config.batch_size
    result = TrainResult(run, model, trainer.step, False, seconds, held_out, training)
    if not is_first():
        return result
    write_json(
        run / RESULT,
        {
            "step": trainer.step,
            "held_out": held_out and _figures(held_out),
            "training": training and _figures(training),
            "codebook_size": trainer.config.codebook_size,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        },
    )
    pictures.save_curves(run / "curves.png", read_metrics(run), trainer.config.codebook_size)
    if held_out is not None and training is not None:
        tiles = trainer.data.preview(_PREVIEW_IMAGES, 2**trainer.config.downsampling)
        pictures.save_reconstructions(run / "reconstructions.png", model, tiles, held_out.psnr)
        pictures.save_usage(run / "usage.png", training, held_out)
    return result


def _say_nothing(line: str) -> None:
    """For all processes but the first."""


def _figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "mse": evaluation.mse,
        "psnr": evaluation.psnr,
        "perplexity": evaluation.perplexity,
        "codes_used": evaluation.codes_used,
    }


def _open(
    config: TrainConfig,
    data: "Dataset[Any] | ImageData | None",
    validation: "Dataset[Any] | None",
) -> ImageData:
    if isinstance(data, ImageData):
        return data
    return in_all(
        lambda: open_data(
            config.data if data is None else data,
            photographs=config.photographs,
            crop=config.crop,
            held_out=config.held_out,
            validation=validation,
        )
    )


def _gpus(config: TrainConfig) -> list[int]:
    device = torch.device(config.device)
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
