"""Quantize dropout: in training, residual quantizers stop after a random stage."""

import functools
import random
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.distributed import is_distributed, summed
from vqvae_fast.nn.codebook.undoing import Runs

# vector-quantize-pytorch draws seeds below this number; the same number makes equal generators draw
# equal seeds.
_SEEDS = 10_000


class QuantizeDropout(nn.Module):
    """Draws the last stage (Zeghidour et al., SoundStream, arXiv 2107.03312, section III-C).

    Under torch.compile the last stage is a tensor, because Python must not wait for it. So all
    stages are computed; the results of those behind the last are masked (:func:`left_out_unless`),
    and their writes are undone (:func:`vqvae_fast.nn.codebook.undoing.undone_unless`). In eager
    mode it is a number, and only the stages up to it are computed. The same draws mean the same
    stages.

    Args:
        stages: Q, the number of stages.
        cutoff: the least index of a last stage.
        multiple_of: the number of stages that run is a multiple of this.

    Attributes:
        least: the least index of a last stage.
    """

    def __init__(self, stages: int, cutoff: int, multiple_of: int):
        super().__init__()
        self._range = stages, cutoff, multiple_of
        self.least = _rounded(cutoff, stages, multiple_of)

    def runs(self, number: int, last: int | Tensor) -> Runs:
        """Return whether stage ``number`` runs if ``last`` is the result of :meth:`last`."""
        return number <= self.least or number <= last

    def last(self, device: torch.device, seed: int | Tensor | None) -> int | Tensor:
        """Return the index of the last stage for this seed; None draws a seed on the device.

        Under torch.compile the result is 0-d int64, and seeds count modulo 10000; drawn seeds are
        below that.
        """
        seed = draw_seed(device) if seed is None else seed
        if not torch.compiler.is_compiling():
            return _last_stage(int(seed), *self._range)
        if not isinstance(seed, Tensor):
            seed = torch.full((), seed, device=device, dtype=torch.int64)
        last: Tensor = torch.ops.vqvae_fast.last_stage(seed % _SEEDS, *self._range)
        return last


def left_out_unless(
    runs: Runs, quantized: Tensor, indices: Tensor, loss: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a stage's results, or those of a stage that is left out if it does not run."""
    if not isinstance(runs, Tensor):
        return quantized, indices, loss
    return (
        torch.where(runs, quantized, 0),
        torch.where(runs, indices, -1),
        torch.where(runs, loss, 0),
    )


class DropsStages(nn.Module):
    """A residual quantizer whose arguments of quantize dropout may change after it is made.

    Args:
        stages: Q, the number of stages.
        enabled: whether it has quantize dropout.
        cutoff: as for :class:`QuantizeDropout`.
        multiple_of: the same.

    Raises:
        ValueError: a number is out of range; also where an attribute is set.
    """

    quantize_dropout: bool
    quantize_dropout_cutoff_index: int
    quantize_dropout_multiple_of: int

    def __init__(self, stages: int, enabled: bool, cutoff: int, multiple_of: int):
        super().__init__()
        self.num_quantizers = stages
        self._dropout = _dropout_of_stages(stages, enabled, cutoff, multiple_of)
        self.quantize_dropout = self._dropout is not None
        self.quantize_dropout_cutoff_index = cutoff
        self.quantize_dropout_multiple_of = multiple_of

    def __setattr__(self, name: str, value: Any) -> None:
        attributes = vars(self)
        if name in _ARGUMENTS and all(argument in attributes for argument in _ARGUMENTS):
            arguments = [value if name == each else attributes[each] for each in _ARGUMENTS]
            self._dropout = _dropout_of_stages(self.num_quantizers, *arguments)
        super().__setattr__(name, value)


_ARGUMENTS = (
    "quantize_dropout",
    "quantize_dropout_cutoff_index",
    "quantize_dropout_multiple_of",
)


def _dropout_of_stages(
    stages: int, enabled: bool, cutoff: int, multiple_of: int
) -> QuantizeDropout | None:
    """Return the dropout of Q stages, or None if it is not enabled.

    Raises:
        ValueError: a number is out of range.
    """
    if not 0 <= cutoff < stages:
        raise ValueError(
            f"quantize_dropout_cutoff_index must be in [0, num_quantizers={stages}), got {cutoff}"
        )
    if multiple_of < 1:
        raise ValueError(f"quantize_dropout_multiple_of must be at least 1, got {multiple_of}")
    return QuantizeDropout(stages, cutoff, multiple_of) if enabled and stages > 1 else None


def draw_seed(device: torch.device) -> int | Tensor:
    """Draw a seed from torch's generator, the same on all processes; a tensor under torch.compile.

    In eager mode with one process, the CPU's generator draws it, so that nothing waits for the
    device.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and not is_distributed():
        return int(torch.randint(0, _SEEDS, ()))
    seed = torch.randint(0, _SEEDS, (), device=device)
    if is_distributed():
        (seed,) = summed(seed)
    return seed if compiling else int(seed)


def skip_seed(device: torch.device) -> None:
    """Advance torch's generator as drawing a seed does, without waiting for the device."""
    torch.randint(0, _SEEDS, (), device=device)


def _last_stage(seed: int, stages: int, cutoff: int, multiple_of: int) -> int:
    return _rounded(random.Random(seed).randrange(cutoff, stages), stages, multiple_of)


def _rounded(index: int, stages: int, multiple_of: int) -> int:
    """Rounds the index of the last stage up, so that the number of stages is a multiple."""
    number = -(-(index + 1) // multiple_of) * multiple_of
    return min(number, stages) - 1


@functools.cache
def _last_stages(stages: int, cutoff: int, multiple_of: int, device: torch.device) -> Tensor:
    """Returns int64 [seeds]: the last stage that Python's generator draws from each seed."""
    drawn = [_last_stage(seed, stages, cutoff, multiple_of) for seed in range(_SEEDS)]
    return torch.tensor(drawn, device=device)


def _last_stage_op(seed: Tensor, stages: int, cutoff: int, multiple_of: int) -> Tensor:
    by_seed = _last_stages(stages, cutoff, multiple_of, seed.device)
    return by_seed.gather(0, seed.reshape(1))[0]  # indexing by a tensor would wait for it


_library = torch.library.Library("vqvae_fast", "FRAGMENT")
_library.define(
    "last_stage(Tensor seed, SymInt stages, SymInt cutoff, SymInt multiple_of) -> Tensor"
)
_library.impl("last_stage", _last_stage_op, "CompositeExplicitAutograd")


@torch.library.register_fake("vqvae_fast::last_stage", lib=_library)
def _(seed: Tensor, stages: int, cutoff: int, multiple_of: int) -> Tensor:
    return torch.empty_like(seed)
