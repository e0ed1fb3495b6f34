"""The parts that differ between quantizers: codes, gradients of the result, losses of training."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from vqvae_fast.autograd.estimators import directional_reparam, rotate_to, straight_through
from vqvae_fast.distributed import is_distributed
from vqvae_fast.nn.codebook.affine_codebook import AffineCodebook
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.drop_in.vector_quantize_call import Call
from vqvae_fast.nn.steps import logits
from vqvae_fast.nn.steps.choosing import Best, Chosen, Drawn, Search, Softened
from vqvae_fast.nn.steps.losses import (
    Commitment,
    commitment_loss,
    cross_entropy_loss,
    no_commitment,
    orthogonality_loss,
)

# Arguments that a quantizer hands to its codes.
_OF_CODEBOOK: tuple[str, ...] = (
    *("kmeans_init", "kmeans_iters", "sync_kmeans", "decay", "eps", "threshold_ema_dead_code"),
    *("ema_update", "manual_ema_update", "use_cosine_sim", "vq_bridge"),
)
_OF_AFFINE_CODEBOOK = (
    *("sync_affine_param", "affine_param_batch_decay", "affine_param_codebook_decay"),
)


class Kinds(NamedTuple):
    """Which routes a quantizer has: whether its attribute of each name is set."""

    use_cosine_sim: bool
    cosine_search: bool
    stochastic_sample_codes: bool
    straight_through: bool
    rotation_trick: bool
    directional_reparam: bool
    route_gradients_to_input: bool
    sync_update_v: bool
    learnable_codebook: bool
    has_commitment_loss: bool
    commitment_use_cross_entropy_loss: bool
    has_codebook_diversity_loss: bool
    has_codebook_orthogonal_loss: bool
    in_place_codebook_optimizer: bool

    @property
    def needs_all_codes(self) -> bool:
        """Whether a loss or a gradient looks at more than the chosen codes."""
        return (
            self.commitment_use_cross_entropy_loss
            or self.has_codebook_diversity_loss
            or self.straight_through
        )

    @property
    def best(self) -> Best:
        """The search in eval."""
        return Best(self.use_cosine_sim, "cosine" if self.cosine_search else "euclidean")

    @property
    def search(self) -> Search:
        """The search in training."""
        search: Search = Drawn(self.best) if self.stochastic_sample_codes else self.best
        return Softened(search, self.use_cosine_sim) if self.straight_through else search

    @property
    def commitment(self) -> Commitment:
        """The loss between vectors and codes in training."""
        if not self.has_commitment_loss:
            return no_commitment
        if self.commitment_use_cross_entropy_loss:
            return partial(cross_entropy_loss, unit_length=self.use_cosine_sim)
        return commitment_loss

    @property
    def estimator(self) -> "Estimator":
        """The gradient of the result in training."""
        estimator: Estimator = _straight_through
        if not self.route_gradients_to_input:
            estimator = _of_codes_alone
        elif self.rotation_trick:
            estimator = _rotation
        elif self.directional_reparam:
            estimator = _directional
        return partial(_synchronous, estimator) if self.sync_update_v else estimator

    @property
    def regularisers(self) -> "tuple[Regulariser, ...]":
        """The further losses of training."""
        diversity: tuple[Regulariser, ...] = ()
        if self.has_codebook_diversity_loss:
            diversity = (Diversity(self.use_cosine_sim),)
        return (*diversity, Orthogonality()) if self.has_codebook_orthogonal_loss else diversity


# The result's gradient to the rows: of (call, rows, quantized), the two last in one shape.
Estimator = Callable[[Call, Tensor, Tensor], Tensor]


def _straight_through(call: Call, rows: Tensor, quantized: Tensor) -> Tensor:
    return straight_through(rows, quantized) if rows.requires_grad else quantized


def _rotation(call: Call, rows: Tensor, quantized: Tensor) -> Tensor:
    return rotate_to(rows, quantized) if rows.requires_grad else quantized


def _directional(call: Call, rows: Tensor, quantized: Tensor) -> Tensor:
    if not rows.requires_grad:
        return quantized
    return directional_reparam(rows, quantized, call.settings.directional_reparam_variance)


def _of_codes_alone(call: Call, rows: Tensor, quantized: Tensor) -> Tensor:
    return quantized


def _synchronous(estimator: Estimator, call: Call, rows: Tensor, quantized: Tensor) -> Tensor:
    """With the synchronous update of arXiv 2305.08842, eq. 21."""
    quantized = estimator(call, rows, quantized)
    return quantized + call.settings.sync_update_v * (quantized - quantized.detach())


class Regulariser(Protocol):
    """A loss of training beside the commitment loss."""

    @property
    def part(self) -> str:
        """Its name in :class:`LossBreakdown`."""

    def value(self, call: Call, chosen: Chosen) -> Tensor:
        """The loss before its weight; 0-d."""

    def weight(self, call: Call) -> float:
        """Its weight."""


class Diversity(NamedTuple):
    """The negative entropy of the codes' shares in the batch."""

    unit_length: bool
    part: str = "codebook_diversity"

    def value(self, call: Call, chosen: Chosen) -> Tensor:
        """As :meth:`Regulariser.value`."""
        temperature = call.settings.codebook_diversity_temperature
        return logits.negative_entropy(
            call.rows, chosen.codes, self.unit_length, temperature, call.counted
        )

    def weight(self, call: Call) -> float:
        """As :meth:`Regulariser.weight`."""
        return call.settings.codebook_diversity_loss_weight


class Orthogonality(NamedTuple):
    """How far the codes are from orthogonal."""

    part: str = "orthogonal_reg"

    def value(self, call: Call, chosen: Chosen) -> Tensor:
        """As :meth:`Regulariser.value`."""
        return orthogonality_loss(
            call.book.embed.detach() if call.frozen else call.book.embed,
            chosen.indices,
            call.counted,
            active_only=call.settings.orthogonal_reg_active_codes_only,
            max_codes=call.settings.orthogonal_reg_max_codes,
        )

    def weight(self, call: Call) -> float:
        """As :meth:`Regulariser.weight`."""
        return call.settings.orthogonal_reg_weight


def make_codebook(given: Mapping[str, Any], books: int) -> Codebook:
    """The codes of a quantizer.

    Args:
        given: the quantizer's arguments by name, all defaults filled in.
        books: C, the number of books.
    """
    kind, names = Codebook, _OF_CODEBOOK
    if given["affine_param"]:
        kind, names = AffineCodebook, (*_OF_CODEBOOK, *_OF_AFFINE_CODEBOOK)
    synced, dim = given["sync_codebook"], given["codebook_dim"]
    return kind(
        given["dim"] if dim is None else dim,
        given["codebook_size"],
        books,
        use_ddp=is_distributed() if synced is None else synced,
        # Their loss is the codes' own.
        learnable_codebook=given["learnable_codebook"] or given["orthogonal_reg_weight"] > 0,
        **{name: given[name] for name in names},
    )
