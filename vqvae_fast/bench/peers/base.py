"""The classes of adapters."""

import importlib
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast.bench.data import Shape

Search = Callable[[], Tensor]


def always() -> str | None:
    """Return None, as the availability of a peer that needs only torch."""
    return None


def needs(module: str, distribution: str, extra: str = "bench") -> Callable[[], str | None]:
    """Return a function that returns None, or why the package of a peer cannot be used."""

    def reason() -> str | None:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            return f"{distribution} is not installed (pip install vqvae_fast[{extra}])"
        except ImportError as error:
            return f"{distribution} is installed but does not import: {error}"
        return None

    return reason


@dataclass(frozen=True)
class SearchPeer:
    """One way to find nearest codes.

    Attributes:
        name: id in tables, JSON and tests.
        timed: what one timed call contains, in words.
        prepare: (z [N, D], codebook [K, D]) -> a call without arguments that returns the
            indices [N], integers (ours: int64). What ``prepare`` does itself is not timed.
        unavailable: None, or the reason why the peer cannot run here.
        dtypes: the input dtypes that it takes, by torch's names.
        matrices: how many matrices [N, K] it holds at its peak.
        most_products: the N K D beyond which it is not tried, because a single call would take
            seconds.
    """

    name: str
    timed: str
    prepare: Callable[[Tensor, Tensor], Search]
    unavailable: Callable[[], str | None] = always
    dtypes: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")
    matrices: int = 0
    most_products: float = math.inf

    def why_not(self, dtype: str, shape: Shape | None = None) -> str | None:
        """Return None if the peer can run on this dtype and at this shape, otherwise the reason."""
        if dtype not in self.dtypes:
            return f"does not take {dtype}"
        if shape is not None and math.prod(shape) > self.most_products:
            return f"takes too long beyond N K D = {self.most_products:.0e}"
        return self.unavailable()


@dataclass(frozen=True)
class LayerPeer:
    """One quantizer layer.

    Attributes:
        name: id in tables, JSON and tests.
        timed: what one timed call contains, in words.
        build: (feature map [B, D, h, w], codebook [K, D]) -> a call without arguments that does
            forward and backward in training mode. The layer starts from the given codebook.
        infer: the same arguments -> a call that gives the quantized feature map [B, D, h, w] in
            eval mode, without gradients.
        learning: "ema" or "gradient": layers are compared with those that learn alike.
        unavailable: None, or the reason why the peer cannot run here.
        matrices: how many matrices [N, K] it holds at its peak.
    """

    name: str
    timed: str
    build: Callable[[Tensor, Tensor], "Step"]
    infer: Callable[[Tensor, Tensor], Callable[[], Tensor]]
    learning: str
    unavailable: Callable[[], str | None] = always
    matrices: int = 0


SumCall = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SumPeer:
    """One way to sum rows by segment.

    Attributes:
        name: id in tables, JSON and tests.
        timed: what one timed call contains, in words.
        prepare: (src [N, D], indices [N] from 0 to K - 1, K) -> a call without arguments that
            returns sums [K, D] and counts [K].
        unavailable: None, or the reason why the peer cannot run here.
    """

    name: str
    timed: str
    prepare: Callable[[Tensor, Tensor, int], SumCall]
    unavailable: Callable[[], str | None] = always


@dataclass(frozen=True)
class ResidualPeer:
    """One way to quantize in stages.

    Attributes:
        name: id in tables, JSON and tests.
        timed: what one timed call contains, in words.
        prepare: (z [N, D], codebooks [Q, K, D]) -> a call without arguments that returns the
            indices [N, Q].
        unavailable: None, or the reason why the peer cannot run here.
        matrices: how many matrices [N, K] it holds at its peak.
    """

    name: str
    timed: str
    prepare: Callable[[Tensor, Tensor], Search]
    unavailable: Callable[[], str | None] = always
    matrices: int = 0


class StepResult(NamedTuple):
    """The results of one training step of a layer, both [B, D, h, w]."""

    quantized: Tensor
    grad_z: Tensor


Step = Callable[[], StepResult]


def inference(layer: Callable[[Tensor], Tensor], fmap: Tensor) -> Search:
    """Return a call of ``layer``, which returns the quantized feature map, without gradients."""

    @torch.no_grad()
    def call() -> Tensor:
        return layer(fmap)

    return call


def training_step(layer: Callable[[Tensor], tuple[Tensor, Tensor]], fmap: Tensor) -> Step:
    """Return a call of forward and backward of ``layer``, which returns (quantized, loss).

    The upstream gradient is a dense tensor, as a decoder's is. An expanded scalar would take other
    paths through some kernels.
    """
    z: Tensor = fmap.detach().clone().requires_grad_()
    upstream = torch.ones_like(z)

    def call() -> StepResult:
        z.grad = None
        quantized, loss = layer(z)
        torch.autograd.backward([quantized, loss], [upstream, torch.ones_like(loss)])
        grad: Tensor = z.grad  # type: ignore[assignment]  # backward has just filled it
        return StepResult(quantized.detach(), grad)

    return call
