"""pytest-benchmark suite of the VQ-VAE's step: ``pytest benchmarks/test_training_step.py``.

Ids are backend-training-data: forward, loss, backward and Adam on images of noise or on crops of
the photographs, with codebooks [K, D]. FLOP/s count the scores and the convolutions, which are the
same for all.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, data, every
from benchmarks.training_step import BATCH, CODES, DIM, NAMES, REFERENCE, contender, whole_step
from vqvae_fast.bench import trained
from vqvae_fast.bench.data import Shape, rows_of
from vqvae_fast.bench.exactness import smallest_distances, violating_share
from vqvae_fast.bench.peers.base import always


class Model(NamedTuple):
    """The result of :func:`benchmarks.training_step.contender`, as a peer."""

    name: str
    timed: str = "a whole training step: forward, loss, backward, Adam"
    unavailable: Callable[[], str | None] = always


def _noise() -> Tensor:
    return torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _photographs() -> Tensor:
    from vqvae_fast.training import open_data

    return open_data("photos").batch(0, 0, BATCH)


def _case(name: str, num_codes: int, make: Callable[[], Tensor]) -> Case:
    shape = Shape(BATCH * 64, num_codes, DIM)
    return Case(f"{name}-{num_codes}x{DIM}", shape, name, make)


IMAGE_CASES = (
    *(_case("noise", k, _noise) for k in CODES),
    *(
        _case("photographs", k, _photographs)._replace(unavailable=trained.unavailable)
        for k in CODES
    ),
)


@functools.cache
def _convolution_flops() -> float:
    """Returns the operations of a step's convolutions, forward and backward."""
    step = whole_step(contender(NAMES[0], 2), _noise())
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return float(sum(count for op, count in counts.items() if "convolution" in str(op)))


def _violating(name: str, case: Case) -> float:
    """Returns the share of the first batch's latents whose code is not the nearest."""
    model = contender(name, case.shape.k).model.eval()
    quantizer = model.vector_quantization
    with torch.no_grad():
        latents = model.pre_quantization_conv(model.encoder(data(case)))
        indices = quantizer(latents)[-1].flatten()
    z, codebook = rows_of(latents), model.state_dict()["vector_quantization.embedding.weight"]
    return violating_share(z, codebook, indices, smallest_distances(z, codebook))


@every(map(Model, NAMES), ["training"], IMAGE_CASES)
def test_training_step(contest, peer: Model, mode: str, case: Case) -> None:
    def check(loss: Tensor) -> float:
        return _violating(peer.name, case) if math.isfinite(float(loss)) else 1.0

    contest(
        peer,
        case,
        lambda: whole_step(contender(peer.name, case.shape.k), data(case)),
        check,
        flops=_convolution_flops() + case.flops,
        matrices=3 if peer.name == REFERENCE else 0,
    )
