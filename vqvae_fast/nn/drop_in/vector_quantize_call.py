"""A call of VectorQuantize as the routes see it, and what they make of it."""

from typing import NamedTuple, Protocol

from torch import Tensor

from vqvae_fast.nn.codebook.averages import EmaWeight
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.steps.choosing import Chosen, Wanted
from vqvae_fast.nn.steps.losses import LossBreakdown


class Settings(Protocol):
    """What the routes read of their quantizer in each call, since it may change between calls."""

    commitment_weight: float
    directional_reparam_variance: float
    sync_update_v: float
    codebook_diversity_loss_weight: float
    codebook_diversity_temperature: float
    orthogonal_reg_weight: float
    orthogonal_reg_active_codes_only: bool
    orthogonal_reg_max_codes: int | None
    manual_in_place_optimizer_update: bool

    @property
    def has_commitment_loss(self) -> bool:
        """Whether there is a loss that commitment_weight weighs."""

    def update_in_place_optimizer(self) -> None:
        """Take a step of the optimizer that the quantizer has for its codes."""


class Averaging(NamedTuple):
    """What a call says about the moving averages: arguments of :meth:`Codebook.update`."""

    weight: EmaWeight = None
    accumulate: bool = False
    ema_update: bool | None = None


class Call(NamedTuple):
    """Vectors, and what is to be done with them.

    Attributes:
        settings: of the quantizer.
        book: its codes.
        rows: [C, ..., N, d], the vectors, in float32 or float64.
        counted: bool [C, ..., N], False for padding; all rows count unless given.
        wanted: of the search.
        frozen: whether the codes are constants, which learn nothing.
        keeps_codes: whether the caller needs all codes as they are in the search.
        averaging: how the averages move.
    """

    settings: Settings
    book: Codebook
    rows: Tensor
    counted: Tensor | None
    wanted: Wanted
    frozen: bool
    keeps_codes: bool = False
    averaging: Averaging = Averaging()

    def commitment_weight(self) -> float:
        """The weight of the commitment loss, 1 if only top-k in eval asks for that loss."""
        settings = self.settings
        return settings.commitment_weight if settings.has_commitment_loss else 1.0

    def codes(self, keep: bool = False) -> Tensor:
        """[C, K, d]; with ``keep`` a snapshot that :meth:`learn` does not change."""
        codes = self.book.codes(keep or self.keeps_codes, self.averaging.ema_update)
        return (codes.detach() if self.frozen else codes).to(self.rows.dtype)

    def prepare(self) -> None:
        """Give a new book its codes, and let it learn what its codes depend on."""
        self.book.prepare(self.rows.detach(), self.counted)

    def learn(self, chosen: Chosen) -> None:
        """Move the averages, but not by several codes for one vector."""
        if self.frozen or self.wanted.topk is not None:
            return
        weight, accumulate, ema_update = self.averaging
        self.book.update(
            self.rows.detach(),
            chosen.indices,
            self.counted,
            weight=weight,
            accumulate=accumulate,
            ema_update=ema_update,
        )


class Outcome(NamedTuple):
    """What a route gives.

    Attributes:
        chosen: the codes; ``quantized`` has the gradient of the route.
        loss: 0-d, or [B, N, k] for k codes of each vector.
        parts: of the loss, before their weights.
    """

    chosen: Chosen
    loss: Tensor
    parts: LossBreakdown


class Route(Protocol):
    """One way from vectors to codes, which a quantizer has made once."""

    def run(self, call: Call) -> Outcome:
        """Find the codes of the rows; in training the book may learn from them."""
