"""Quantize dropout: in training, residual quantizers stop after a random stage."""

import random
from typing import NamedTuple

import torch

from vqvae_fast.distributed import is_distributed, summed

# vector-quantize-pytorch's: the seeds of equal generators are equal.
_SEEDS = 10_000


class QuantizeDropout(NamedTuple):
    """Draws the last stage (Zeghidour et al., SoundStream, arXiv 2107.03312, section III-C).

    Attributes:
        stages: Q.
        cutoff: the least index of a last stage.
        multiple_of: the number of stages is one of this.
    """

    stages: int
    cutoff: int
    multiple_of: int

    @torch.compiler.disable
    def last(self, device: torch.device, seed: int | None) -> int:
        """Index of the last stage; the same for the same seed, drawn on device if None is given."""
        seed = draw_seed(device) if seed is None else seed
        index = random.Random(seed).randrange(self.cutoff, self.stages)
        stages = -(-(index + 1) // self.multiple_of) * self.multiple_of
        return min(stages, self.stages) - 1


def dropout_of_stages(
    enabled: bool, stages: int, cutoff: int, multiple_of: int
) -> QuantizeDropout | None:
    """The dropout of Q stages; None if there is none.

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


@torch.compiler.disable
def draw_seed(device: torch.device) -> int:
    """A seed from torch's generator, the same on all processes.

    Alone, from the CPU's: it is wanted here, and nothing has to wait for the device.
    """
    if not is_distributed():
        return int(torch.randint(0, _SEEDS, ()))
    (seed,) = summed(torch.randint(0, _SEEDS, (), device=device))
    return int(seed)


def skip_seed(device: torch.device) -> None:
    """Leave torch's generator where drawing a seed does; nothing waits for the device."""
    torch.randint(0, _SEEDS, (), device=device)
