"""The settings of a run, which are checked before anything is made."""

import dataclasses
import reprlib
import sys
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch

from vqvae_fast.errors import UserError
from vqvae_fast.recipes import recipe_names
from vqvae_fast.training.data import DEFAULT_PHOTOGRAPHS

_COUNTS = (
    "codebook_size",
    "dim",
    "h_dim",
    "res_h_dim",
    "n_res_layers",
    "downsampling",
    "batch_size",
    "steps",
    "log_every",
    "eval_every",
    "eval_crops",
    "checkpoint_every",
)

_LARGEST = sys.float_info.max
# Larger values are refused: a small file can ask for any number of layers, since residual layers
# may share the weights of one.
MOST = {"downsampling": 16, "n_res_layers": 1000}
# Adam's first step is ten times the learning rate, and a float32 must hold it.
_LARGEST_LR = 3e37


@dataclass(frozen=True)
class TrainConfig:
    """A run of :func:`vqvae_fast.training.train`; the defaults are those of ``vqvae-fast train``.

    Two runs of one config on one machine give the same numbers (on the CPU bit for bit).

    Attributes:
        data: "photos", a folder, "cifar10:FOLDER", a .npy or .npz file; see
            :func:`vqvae_fast.training.open_data`. Ignored when :func:`train` is given data.
        photographs: which photographs "photos" takes.
        crop: side of the training crops in pixels; None lets the data decide (32 for photographs).
        held_out: share of the data that is never trained on.
        quantizer: how the codebook learns: the name of a recipe in :mod:`vqvae_fast.recipes`, for
            instance "ema" (moving averages, k-means initialisation, replacement of dead codes) or
            "gradient" (as the reference VQ-VAE does: uniform initialisation, its loss, no
            replacement).
        codebook_size: number of codes K.
        dim: length of a code D; None lets the recipe decide: 64, or 16 for moving averages with
            more codes than a step has vectors.
        h_dim: channels of the encoder and the decoder.
        res_h_dim: inner channels of a residual layer.
        n_res_layers: residual layers in each of the two.
        downsampling: how often the encoder halves width and height.
        beta: weight of the commitment loss (of the codebook loss with "gradient", where the
            reference has put it).
        batch_size: crops in a step.
        steps: steps of the whole run.
        lr: learning rate of Adam.
        seed: seed of the initial weights, the batches and the quantizer's random choices.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        dtype: "float32", or "bf16" to run the convolutions under bfloat16 autocast.
        compile: run the training step through torch.compile.
        log_every: steps between two lines of metrics.jsonl.
        eval_every: steps between two measurements on the held-out crops.
        eval_crops: number of held-out crops measured.
        checkpoint_every: steps between two checkpoints.
        out: run folder; None takes the next free name below ``runs``.
    """

    data: str = "photos"
    photographs: tuple[str, ...] = DEFAULT_PHOTOGRAPHS
    crop: int | None = None
    held_out: float = 0.2
    quantizer: str = "ema"
    codebook_size: int = 512
    dim: int | None = None
    h_dim: int = 128
    res_h_dim: int = 32
    n_res_layers: int = 2
    downsampling: int = 2
    beta: float = 0.25
    batch_size: int = 32
    steps: int = 2000
    lr: float = 3e-4
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    compile: bool = False
    log_every: int = 10
    eval_every: int = 250
    eval_crops: int = 1024
    checkpoint_every: int = 500
    out: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError if a value has a wrong type or is out of range."""
        counts = [name for name in _COUNTS if name != "dim" or self.dim is not None]
        for names, kinds, what in (
            ((*counts, "seed"), int, "an integer"),
            (("crop",), (int, NoneType), "an integer or None"),
            (("lr", "beta", "held_out"), (int, float), "a number"),
            (("data", "device", "quantizer", "dtype"), str, "a string"),
            (("out",), (str, NoneType), "a string or None"),
            (("compile",), bool, "True or False"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                    raise UserError(f"{name} must be {what}, got {reprlib.repr(value)}")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
            if getattr(self, name) >= 2**63:
                raise UserError(f"{name} must be below 2^63, got {getattr(self, name)}")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise UserError(f"{name} must be at most {most}, got {getattr(self, name)}")
        for name in ("lr", "beta", "held_out"):
            value = getattr(self, name)
            if not -_LARGEST <= value <= _LARGEST:  # a NaN compares false
                raise UserError(f"{name} must be a finite number, got {str(value)[:12]}")
        photographs: Any = self.photographs
        if not isinstance(photographs, tuple) or not all(isinstance(n, str) for n in photographs):
            given = reprlib.repr(photographs)
            raise UserError(f"photographs must be a tuple of names, got {given}")
        if not self.lr > 0:
            raise UserError(f"lr must be above 0, got {self.lr:g}")
        if self.lr > _LARGEST_LR:
            raise UserError(f"lr must be at most {_LARGEST_LR:g}, got {self.lr:g}")
        if not self.beta >= 0:
            raise UserError(f"beta must not be below 0, got {self.beta:g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out must lie between 0 and 1, got {self.held_out:g}")
        *others, last = recipe_names()
        if self.quantizer not in (*others, last):
            known = f"{', '.join(others)} or {last}"
            raise UserError(f"quantizer must be {known}, got {self.quantizer}")
        if self.dtype not in ("float32", "bf16"):
            raise UserError(f"dtype must be float32 or bf16, got {self.dtype}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json and the checkpoint hold them."""
        return dataclasses.asdict(self) | {"photographs": list(self.photographs)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of :meth:`to_dict`; raises UserError on unknown or missing settings."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"unknown settings: {reprlib.repr(unknown)}")
        missing = sorted(known - set(values))
        if missing:
            raise UserError(f"settings are missing: {', '.join(missing)}")
        photographs = values["photographs"]
        if isinstance(photographs, list):  # JSON has no tuples
            photographs = tuple(photographs)
        return cls(**values | {"photographs": photographs})


def is_number(value: object) -> bool:
    """Whether a value out of a file is a number that a float can hold; True and False are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def pick_device(name: str) -> torch.device:
    """The device of that name, or the best one for "auto"; raises UserError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} is not available: this torch finds {torch.cuda.device_count()} GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name}")
    return device
