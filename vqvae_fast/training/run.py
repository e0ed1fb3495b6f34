"""train() and resume() carry out a run, from the config to the pictures."""

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
from vqvae_fast.training.loop import Steps, Trainer, run_steps
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
        held_out: figures on the fixed held-out crops; None if the run was interrupted, or ended
            before k-means had its vectors, so that there are no codes.
        training: figures on the training crops of the last 32 steps, drawn again; None as for
            ``held_out``.
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
        # A batch that cannot be drawn, or exceeds the memory, fails here, before there is a folder.
        images.batch(config.seed, 0, config.batch_size)
        label = "dataset" if data is not None else source_label(config.data)
        state = trainer.state()

        def fill(folder: Path) -> None:
            save_checkpoint(folder, state)  # whatever ends the run, it can be resumed
            write_json(folder / CONFIG, config.to_dict())  # last: it makes the folder a run

        new = new_run(config.out, f"{label}-{config.quantizer}", fill)
        with ExitStack() as lock:
            run = in_first(lambda: lock.enter_context(new))
            _announce(trainer, run, say)
            return _measure(trainer, run, run_steps(trainer, run, progress))


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
        UserError: ``run`` is not a run folder, another process writes to it, a file in it is
            damaged, the data is not the run's, nothing is left to do, or training diverged.
    """
    path = open_run(run)
    with ExitStack() as lock:
        in_first(lambda: lock.enter_context(locked(path)))
        config = read_config(path)
        changes: dict[str, Any] = {"steps": steps, "device": device}
        config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
        config = dataclasses.replace(config, device=str(pick_device(config.device)))
        state = load_checkpoint(path, "cpu")
        done = state["step"]
        if done > config.steps or (done == config.steps and (path / RESULT).exists()):
            raise UserError(
                f"{path} is at step {done} of {config.steps} already; give more --steps to train on"
            )
        images = _open(config, data, validation)
        with torch.random.fork_rng(devices=_gpus(config)):
            torch.manual_seed(config.seed)
            trainer = Trainer(config, images, images.variance())
            trainer.load(state, path)
            read_metrics(path)  # a file that cannot be read fails before anything is written
            if is_first():
                write_json(path / CONFIG, config.to_dict())
                say(f"resuming at step {trainer.step}")
            _announce(trainer, path, say)
            return _measure(trainer, path, run_steps(trainer, path, progress))


def _announce(trainer: Trainer, run: Path, say: Callable[[str], None]) -> None:
    """Say what is about to be trained; of several processes the first one says it.

    A run that ends before k-means has its vectors leaves a model without codes. This is a note and
    no error: the run can be continued with more steps, and then equals a longer run.
    """
    if not is_first():
        return
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


def _measure(trainer: Trainer, run: Path, steps: Steps) -> TrainResult:
    """Measure the trained model; the first process writes the results and draws them."""
    model = trainer.model.eval()
    held_out = training = None
    if not steps.interrupted and trainer.collection is None:
        held_out = trainer.evaluate(trainer.held_out)
        training = trainer.evaluate(trainer.recent_batches())
    if is_first() and not steps.interrupted:
        images = steps.done * trainer.config.batch_size
        result = {
            "step": trainer.step,
            "held_out": held_out and _figures(held_out),
            "training": training and _figures(training),
            "codebook_size": trainer.config.codebook_size,
            "seconds": round(steps.seconds, 3),
            "images_per_second": round(images / max(steps.seconds, 1e-9), 1),
        }
        write_json(run / RESULT, result)
        _draw(trainer, run, held_out, training)
    return TrainResult(
        run, model, trainer.step, steps.interrupted, steps.seconds, held_out, training
    )


def _draw(
    trainer: Trainer, run: Path, held_out: Evaluation | None, training: Evaluation | None
) -> None:
    """Draw the curves of a run and, if the model has codes, what it does to images."""
    pictures.save_curves(run / "curves.png", read_metrics(run), trainer.config.codebook_size)
    if held_out is not None and training is not None:
        tiles = trainer.data.preview(_PREVIEW_IMAGES, 2**trainer.config.downsampling)
        path = run / "reconstructions.png"
        pictures.save_reconstructions(path, trainer.model, tiles, held_out.psnr)
        pictures.save_usage(run / "usage.png", training, held_out)


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
