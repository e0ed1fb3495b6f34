"""The differences from the peer that are meant. All are here."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Options = dict[str, Any]


class Known(NamedTuple):
    """A difference that is no finding.

    Attributes:
        why: the reason; "docs" in front of one that docs/drop-in.md gives.
        parts: a regular expression for the parts of the result that may differ.
        applies: whether it can be seen in a case, by the class's name, the constructor's arguments
            and all steps so far.
    """

    why: str
    parts: str
    applies: Callable[[str, Options, Sequence[Any]], bool]


_ANY = "."
_LOSS = "loss|gradient|more|state .*(project|weight|bias|embed:)"
_CROSS_ENTROPIES = (
    "commitment_use_cross_entropy_loss",
    "codebook_diversity_loss_weight",
    "straight_through",
)


def _residual(name: str) -> bool:
    return name in ("ResidualVQ", "GroupedResidualVQ")


def _masked(steps: Sequence[Any]) -> bool:
    return any({"mask", "lens"} & step.arguments.keys() for step in steps)


def _given(steps: Sequence[Any], argument: str) -> bool:
    return any(step.arguments.get(argument) for step in steps)


def _frozen(options: Options, steps: Sequence[Any]) -> bool:
    return bool(options.get("freeze_codebook")) or _given(steps, "freeze_codebook")


def _averages(options: Options, steps: Sequence[Any]) -> bool:
    learns = options.get("learnable_codebook") or options.get("directional_reparam")
    return options.get("ema_update", not learns) or _given(steps, "ema_update")


def _beam(options: Options, steps: Sequence[Any]) -> bool:
    widths = [options.get("beam_size"), options.get("eval_beam_size")]
    widths += [step.arguments.get("beam_size") for step in steps]
    return max(width or 1 for width in widths) > 1


def _many_heads(options: Options) -> bool:
    return options.get("heads", 1) > 1


def _projects(options: Options) -> bool:
    inner = options.get("codebook_dim", options["dim"]) * options.get("heads", 1)
    return bool(inner != options["dim"] // options.get("groups", 1))


def _tokens(name: str, step: Any) -> bool:
    """Whether x is [B, N, D]."""
    return len(step.shape) == 3


# Each entry is as narrow as its reason. The peer is wrong or another choice was made, and
# docs/drop-in.md says so under the heading that the reason begins with.
DELIBERATE: list[Known] = [
    Known(
        "What the peer lacks: use_cosine_sim with learnable_codebook",
        "^peer raises: .*cosine sim distance codebook",
        lambda name, o, steps: bool(o.get("use_cosine_sim")),
    ),
    Known(
        "Stricter: a dropout cutoff out of range",
        "^we raise: .*quantize_dropout_cutoff_index must be in",
        lambda name, o, steps: "quantize_dropout_cutoff_index" in o,
    ),
    Known(
        "Residual quantizers: feature maps, channel_last=False and other dimensions",
        "^peer raises",
        lambda name, o, steps: (
            (name != "VectorQuantize" and not all(_tokens(name, step) for step in steps))
            or (_residual(name) and o.get("channel_last") is False)
            or (_residual(name) and bool(o.get("accept_image_fmap")))
        ),
    ),
    Known(
        "Residual quantizers: freeze_codebook=True does not reach the stages",
        _ANY,
        lambda name, o, steps: _residual(name) and bool(o.get("freeze_codebook")),
    ),
    Known(
        "Residual quantizers: DiVeQ's noise is there in evaluation",
        _ANY,
        lambda name, o, steps: bool(o.get("diveq")) and not steps[-1].training,
    ),
    Known(
        "Residual quantizers: a beam",
        _ANY,
        lambda name, o, steps: (
            _residual(name)
            and _beam(o, steps)
            and (
                any(step.training for step in steps)
                or o["codebook_size"] == 1
                or bool(o.get("implicit_neural_codebook"))
            )
        ),
    ),
    Known(
        "Residual quantizers: dead codes, freezing and the optimizer of a shared book",
        _ANY,
        lambda name, o, steps: (
            bool(o.get("shared_codebook"))
            and (
                "threshold_ema_dead_code" in o
                or "in_place_codebook_optimizer" in o
                or _frozen(o, steps)
            )
        ),
    ),
    Known(
        "Residual quantizers: what GroupedResidualVQ cannot stack or pass on",
        "^peer raises",
        lambda name, o, steps: name == "GroupedResidualVQ" and o["num_quantizers"] is None,
    ),
    Known(
        "Gradients and statistics: of the codes that the moving average has written since",
        "loss|gradient|state|more",
        lambda name, o, steps: (
            _averages(o, steps)
            and (
                any(option in o for option in (*_CROSS_ENTROPIES, "vq_bridge"))
                or any("indices" in step.arguments for step in steps)
                or bool(o.get("shared_codebook") and o.get("orthogonal_reg_weight"))
            )
        ),
    ),
    Known(
        "Gradients and statistics: a frozen codebook still gets a gradient",
        "^(gradient of|state) .*(embed|vq_bridge)|^result of get_",
        lambda name, o, steps: _frozen(o, steps),
    ),
    Known(
        "Gradients and statistics: affine codes in evaluation and at the beginning",
        _ANY,
        lambda name, o, steps: (
            bool(o.get("affine_param"))
            and (
                not all(step.training for step in steps)
                or "threshold_ema_dead_code" in o
                or any(step.round_trip for step in steps)
                or _residual(name)
            )
        ),
    ),
    Known(
        "Gradients and statistics: affine codes of one vector, whose variance is rounding",
        _ANY,
        lambda name, o, steps: (
            bool(o.get("affine_param")) and any(math.prod(step.shape) == o["dim"] for step in steps)
        ),
    ),
    Known(
        "Gradients and statistics: an in-place optimizer counts a batch twice",
        _ANY,
        lambda name, o, steps: (
            "in_place_codebook_optimizer" in o
            and (bool(o.get("affine_param")) or _averages(o, steps))
        ),
    ),
    Known(
        "Gradients and statistics: a cross-entropy commitment loss of feature maps or [B, D] fails",
        "^peer raises: .*target",
        lambda name, o, steps: (
            bool(o.get("commitment_use_cross_entropy_loss"))
            and not all(_tokens(name, step) for step in steps)
        ),
    ),
    Known(
        "Gradients and statistics: the parts of a loss of several codes lie flat",
        "^result more",
        lambda name, o, steps: _given(steps, "topk") and _given(steps, "return_loss_breakdown"),
    ),
    Known(
        "Gradients and statistics: the rotation of a vector shorter than 1e-6 is not its code",
        _ANY,  # only in one dimension do random residuals come that near to zero
        lambda name, o, steps: (
            name != "VectorQuantize" and o["dim"] == 1 and o.get("rotation_trick", True)
        ),
    ),
    Known(
        # Without decay, codes that no vector chose become equal. The peer's order of them is not
        # specified (torch.topk); ours is that of their indices.
        "Gradients and statistics: of equally near codes topk takes the lowest indices first",
        _ANY,
        lambda name, o, steps: _given(steps, "topk") and o.get("decay") == 0.0,
    ),
    Known(
        "Gradients and statistics: topk with straight_through mixes vectors, or fails",
        _ANY,
        lambda name, o, steps: (
            bool(o.get("straight_through")) and (_given(steps, "topk") or _beam(o, steps))
        ),
    ),
    Known(
        "Nothing is ignored: arguments that contradict each other in training raise at once",
        "^we raise: .*(beam search in training does not go|needs one book for all heads)",
        lambda name, o, steps: not any(step.training for step in steps),
    ),
    Known(
        "Gradients and statistics: k-means in evaluation, and codes that no vector chose",
        _ANY,
        lambda name, o, steps: bool(o.get("kmeans_init")),
    ),
    Known(
        "Gradients and statistics: an unused cosine code shrinks to nothing",
        _ANY,
        lambda name, o, steps: (
            bool(o.get("use_cosine_sim"))
            and _averages(o, steps)
            and (o.get("decay", 0.8) < 0.1 or o.get("codebook_dim", o["dim"]) == 1)
        ),
    ),
    Known(
        "Gradients and statistics: the length of orthogonal cosine codes",
        _ANY,
        lambda name, o, steps: bool(o.get("use_cosine_sim")) and "orthogonal_reg_weight" in o,
    ),
    Known(
        "Gradients and statistics: an input without a gradient stops that of project_in",
        "gradient|state|loss",
        lambda name, o, steps: any(not step.needs_gradient for step in steps) and _projects(o),
    ),
    Known(
        "Masks: heads, projections and layouts",
        "^peer raises|" + _LOSS,
        lambda name, o, steps: (
            _masked(steps)
            and (
                _many_heads(o)
                or _projects(o)
                or o.get("channel_last") is False
                or bool(o.get("use_cosine_sim"))
            )
        ),
    ),
    Known(
        "Masks: padding reaches the diversity loss and the orthogonal loss",
        _LOSS,
        lambda name, o, steps: (
            _masked(steps)
            and ("codebook_diversity_loss_weight" in o or "orthogonal_reg_active_codes_only" in o)
        ),
    ),
    Known(
        "Decoding: heads, affine codes, bridges, -1 and channel-first layouts",
        "^result of get_|^peer raises",
        lambda name, o, steps: (
            not steps[-1].training
            and (
                _many_heads(o)
                or bool(o.get("separate_codebook_per_head"))
                or "affine_param" in o
                or "vq_bridge" in o
                or _masked(steps[-1:])
                or o.get("channel_last") is False
                or bool(o.get("accept_image_fmap") or o.get("accept_3d_fmap"))
            )
        ),
    ),
    Known(
        "Decoding: forward(x, indices=...) returns vectors before the projection",
        "quantized|^peer raises|gradient|state .*(project|weight|embed)",
        lambda name, o, steps: (
            "indices" in steps[-1].arguments
            and (_many_heads(o) or _projects(o) or o.get("channel_last") is False)
        ),
    ),
    Known(
        "Randomness: expiry draws in every step; more dead codes than vectors; masked vectors",
        _ANY,
        lambda name, o, steps: (
            "threshold_ema_dead_code" in o and any(step.training for step in steps)
        ),
    ),
]


def reason(
    name: str, options: Options, steps: Sequence[Any], different: dict[str, str]
) -> str | None:
    """Why these differences are known; None unless every one of them is."""
    entries = [k for k in DELIBERATE if k.applies(name, options, steps)]
    reasons = []
    for part, what in different.items():
        fitting = [k.why for k in entries if re.search(k.parts, f"{part}: {what}")]
        if not fitting:
            return None
        reasons.append(fitting[0])
    return sorted(set(reasons))[0]


def tells_near_ties(name: str, options: Options, steps: Sequence[Any]) -> bool:
    """Whether the peer's own distances say which choices of codes are a toss-up in float32."""
    by_search = name in ("VectorQuantize", "ResidualVQ")
    drawn = {"stochastic_sample_codes", "kmeans_init", "beam_size", "implicit_neural_codebook"}
    drawn |= {"in_place_codebook_optimizer"}  # it searches twice
    return (
        by_search
        and not drawn & options.keys()
        and not options.get("separate_codebook_per_head")
        and options.get("heads", 1) == 1
        and not any({"topk", "beam_size", "indices"} & step.arguments.keys() for step in steps)
    )


def near_tie(
    searched: Sequence[Tensor],
    theirs: dict[str, Tensor | None],
    ours: dict[str, Tensor | None],
) -> bool:
    """Whether indices differ only where the peer's float32 distances are equal but for rounding."""
    a, b = theirs.get("result indices"), ours.get("result indices")
    if a is None or b is None or a.shape != b.shape or torch.equal(a, b) or not searched:
        return False
    stages = len(searched)
    a, b = (t.reshape(-1, stages if t.shape[-1] == stages else 1) for t in (a, b))
    for row in (a != b).any(dim=1).nonzero().flatten().tolist():
        stage = int((a[row] != b[row]).nonzero()[0])
        distances = searched[stage].reshape(-1, searched[stage].shape[-1])[row]
        one, other = distances[a[row, stage]], distances[b[row, stage]]
        if (one - other).abs() > 1e-4 * (1 + one.abs()):
            return False
    return True
