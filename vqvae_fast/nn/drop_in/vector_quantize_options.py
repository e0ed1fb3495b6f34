"""Which of VectorQuantize's arguments go together, and what the ones not given are."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from vqvae_fast.nn.steps.checks import (
    check_counts,
    check_not_negative,
    check_real,
    check_shares,
    refuse,
)
from vqvae_fast.nn.steps.fixed_attributes import FixedAttributes

_SHARES = ("decay", "affine_param_batch_decay", "affine_param_codebook_decay", "sync_update_v")
_NOT_NEGATIVE = (
    "eps",
    "threshold_ema_dead_code",
    "commitment_weight",
    "orthogonal_reg_weight",
    "codebook_diversity_loss_weight",
    "codebook_diversity_temperature",
    "sample_codebook_temp",
    "directional_reparam_variance",
)
# Of losses; a quantizer has no such loss while its weight is 0.
WEIGHTS = ("commitment_weight", "orthogonal_reg_weight", "codebook_diversity_loss_weight")


class OfCodebook:
    """An argument that the codebook of a quantizer has as an attribute of the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, quantizer: Any, owner: type | None = None) -> Any:
        return self if quantizer is None else getattr(quantizer._codebook, self.name)

    def __set__(self, quantizer: Any, value: Any) -> None:
        setattr(quantizer._codebook, self.name, value)


class KeptArguments(FixedAttributes):
    """The arguments that a quantizer keeps as attributes of their names.

    Those that decide how it is made are fixed. The others take effect in the next call.
    """

    FIXED = frozenset(
        (
            *("dim", "codebook_size", "heads", "separate_codebook_per_head"),
            *("channel_last", "accept_image_fmap", "accept_3d_fmap"),
            *("learnable_codebook", "use_cosine_sim"),
        )
    )
    dim: int
    codebook_size: int
    heads: int
    separate_codebook_per_head: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool
    learnable_codebook: bool
    use_cosine_sim: bool
    cosine_search: bool
    freeze_codebook: bool
    stochastic_sample_codes: bool
    sample_codebook_temp: float
    straight_through: bool
    rotation_trick: bool
    directional_reparam: bool
    directional_reparam_variance: float
    sync_update_v: float
    route_gradients_to_input: bool
    return_zeros_for_masked_padding: bool
    commitment_weight: float
    commitment_use_cross_entropy_loss: bool
    orthogonal_reg_weight: float
    orthogonal_reg_active_codes_only: bool
    orthogonal_reg_max_codes: int | None
    codebook_diversity_loss_weight: float
    codebook_diversity_temperature: float
    manual_in_place_optimizer_update: bool

    @property
    def has_commitment_loss(self) -> bool:
        """Whether vectors and codes pull at each other."""
        return self.commitment_weight > 0 and not self.directional_reparam

    @property
    def has_codebook_orthogonal_loss(self) -> bool:
        """Whether the codes' orthogonality counts."""
        return self.orthogonal_reg_weight > 0

    @property
    def has_codebook_diversity_loss(self) -> bool:
        """Whether the batch's use of the codes counts."""
        return self.codebook_diversity_loss_weight > 0

    def keep(self, given: Mapping[str, Any]) -> None:
        """Set the attributes from the constructor's arguments, by name."""
        for name in KeptArguments.__annotations__:
            setattr(self, name, given[name])


class Learning(NamedTuple):
    """How the codes learn and the gradient passes, with all defaults filled in."""

    ema_update: bool
    learnable_codebook: bool
    rotation_trick: bool


def learning(given: Mapping[str, Any]) -> Learning:
    """Fill in what was not given; what was given is kept, and checked by :func:`check`.

    Args:
        given: the constructor's arguments by name.
    """
    learnable_codebook, ema_update = given["learnable_codebook"], given["ema_update"]
    rotation_trick = given["rotation_trick"]
    if learnable_codebook is None:
        learnable_codebook = given["directional_reparam"] or given["vq_bridge"] is not None
    if ema_update is None:
        ema_update = not learnable_codebook
    if rotation_trick is None:  # in one dimension there is nothing to rotate
        others = given["directional_reparam"] or given["straight_through"]
        rotation_trick = not others and given["dim"] != 1
    return Learning(ema_update, learnable_codebook, rotation_trick)


def check(given: dict[str, Any]) -> None:
    """Raise for a number out of range, and for arguments that contradict each other.

    Args:
        given: the constructor's arguments by name, those of :class:`Learning` filled in.

    Raises:
        ValueError: says which, and why.
    """
    whole = ["dim", "codebook_size", "heads", "kmeans_iters"]
    whole += [n for n in ("codebook_dim", "orthogonal_reg_max_codes") if given[n] is not None]
    shares = {name: given[name] for name in _SHARES}
    not_negative = {name: given[name] for name in _NOT_NEGATIVE}
    check_counts({name: given[name] for name in whole})
    check_real(shares | not_negative)
    check_shares(shares)
    check_not_negative(not_negative)
    refuse(*_contradictions(given))


def check_topk(topk: int, quantizer: Any) -> int:
    """The number of codes that a call asks a VectorQuantize for, no more than there are.

    Raises:
        ValueError: it is out of range, or the quantizer cannot give several.
        TypeError: it is no integer.
    """
    try:
        topk = operator.index(topk)
    except TypeError:
        raise TypeError(f"topk must be an integer, got {topk!r}") from None
    training = quantizer.training
    does_not_go_with = "topk does not go with"
    refuse(
        (quantizer.heads > 1, f"{does_not_go_with} heads > 1"),
        (quantizer.cosine_search, f"{does_not_go_with} cosine_search"),
        (
            training and quantizer.commitment_use_cross_entropy_loss,
            f"{does_not_go_with} commitment_use_cross_entropy_loss in training",
        ),
        (
            training and quantizer.in_place_codebook_optimizer is not None,
            f"{does_not_go_with} in_place_codebook_optimizer in training",
        ),
        (topk < 1, f"topk must be at least 1, got {topk}"),
    )
    size: int = quantizer.codebook_size
    return min(topk, size)


def _contradictions(given: dict[str, Any]) -> list[tuple[Any, str]]:
    estimators = ("straight_through", "rotation_trick", "directional_reparam")
    asked = [name for name in estimators if given[name]]
    by_distance = (
        "use_cosine_sim",
        "stochastic_sample_codes",
        "straight_through",
        "commitment_use_cross_entropy_loss",
        "codebook_diversity_loss_weight",
    )
    others = [name for name in by_distance if given[name]]
    learnable, bridge = given["learnable_codebook"], given["vq_bridge"] is not None
    return [
        (
            given["accept_image_fmap"] and given["accept_3d_fmap"],
            "accept_image_fmap and accept_3d_fmap exclude each other",
        ),
        (len(asked) > 1, f"{' and '.join(asked)} exclude each other: there is one gradient"),
        (
            given["directional_reparam"] and given["threshold_ema_dead_code"] == 0,
            "directional_reparam needs threshold_ema_dead_code > 0: only codes that are chosen "
            "learn from it",
        ),
        (
            given["straight_through"] and learnable,
            "straight_through (of the Gumbel softmax) and learnable_codebook exclude each other",
        ),
        (
            given["ema_update"] and learnable,
            "ema_update and learnable_codebook exclude each other: an average would overwrite "
            "what the optimizer has learned",
        ),
        (bridge and not learnable, "vq_bridge needs learnable_codebook"),
        (
            given["sync_update_v"] > 0 and not learnable,
            "sync_update_v > 0 needs learnable_codebook",
        ),
        (
            given["in_place_codebook_optimizer"] is not None and not learnable,
            "in_place_codebook_optimizer needs learnable_codebook: it has nothing to optimize",
        ),
        (
            given["affine_param"] and given["use_cosine_sim"],
            "affine_param and use_cosine_sim exclude each other: codes would lose unit length",
        ),
        (
            given["cosine_search"] and others,
            f"cosine_search and {' and '.join(others)} exclude each other: codes are chosen by one "
            "measure",
        ),
        (
            given["orthogonal_reg_weight"] > 0
            and given["orthogonal_reg_active_codes_only"]
            and given["separate_codebook_per_head"]
            and given["heads"] > 1,
            "orthogonal_reg_active_codes_only needs one book for all heads",
        ),
    ]
