"""Random classes, constructor arguments and calls of the drop-in quantizers."""

import functools
import random
from typing import Any

import torch

Options = dict[str, Any]

# Chance of each optional argument: few enough that most combinations are allowed.
_OFTEN, _SELDOM = 0.15, 0.07


class Shift(torch.nn.Module):
    """A bridge that the codes go through, made alike without random numbers."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, dim))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return codes * self.weight

    def __repr__(self) -> str:
        return "Shift()"


def _some(choices: random.Random, chances: dict[str, tuple[float, Any]]) -> Options:
    """Each option with its chance, at one of its values."""
    drawn = {name: choices.choice(values) for name, (_, values) in chances.items()}
    return {name: drawn[name] for name, (p, _) in chances.items() if choices.random() < p}


def _learning(choices: random.Random) -> Options:
    """How the codes learn: averages in half of the cases."""
    gradient = {"learnable_codebook": True, "ema_update": False}
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    return choices.choice(
        [
            {},
            {},
            {},
            {},
            {"ema_update": False},
            {"manual_ema_update": True},
            {"decay": choices.choice([0.0, 0.5, 0.99])},
            gradient,
            gradient,
            {**gradient, "sync_update_v": choices.choice([0.3, 1.0])},
            {**gradient, "in_place_codebook_optimizer": sgd},
            {
                **gradient,
                "in_place_codebook_optimizer": sgd,
                "manual_in_place_optimizer_update": True,
            },
        ]
    )


def _of_one_stage(choices: random.Random) -> Options:
    options = _learning(choices)
    options |= _some(
        choices,
        {
            "eps": (_SELDOM, [1e-3, 1e-8]),
            "freeze_codebook": (_SELDOM, [True]),
            "kmeans_init": (_SELDOM, [True]),
            "kmeans_iters": (_SELDOM, [1, 3]),
            "use_cosine_sim": (_OFTEN, [True]),
            "threshold_ema_dead_code": (_OFTEN, [1, 2, 0.5]),
            "commitment_weight": (_OFTEN, [0.0, 0.25, 2.0]),
            "commitment_use_cross_entropy_loss": (_SELDOM, [True]),
            "orthogonal_reg_weight": (_SELDOM, [0.5]),
            "orthogonal_reg_active_codes_only": (_SELDOM, [True]),
            "orthogonal_reg_max_codes": (_SELDOM, [5]),
            "codebook_diversity_loss_weight": (_SELDOM, [0.5]),
            "codebook_diversity_temperature": (_SELDOM, [1.0, 10.0]),
            "stochastic_sample_codes": (_OFTEN, [True]),
            "sample_codebook_temp": (_OFTEN, [0.0, 0.3]),
            "rotation_trick": (_OFTEN, [False, True]),
            "affine_param": (_SELDOM, [True]),
            "affine_param_batch_decay": (_SELDOM, [0.5]),
            "affine_param_codebook_decay": (_SELDOM, [0.5]),
            "return_zeros_for_masked_padding": (_OFTEN, [False]),
            "route_gradients_to_input": (_SELDOM, [False]),
        },
    )
    if choices.random() < _SELDOM:
        options |= {"straight_through": True, "rotation_trick": False}
    if choices.random() < _SELDOM:
        options |= {"directional_reparam": True, "threshold_ema_dead_code": 1}
    return options


def vector_quantize(choices: random.Random) -> Options:
    options = {"dim": choices.choice([1, 2, 6, 8, 12]), "codebook_size": choices.choice([1, 7, 16])}
    options |= _of_one_stage(choices)
    options |= choices.choice(
        [
            {},
            {},
            {},
            {"codebook_dim": choices.choice([1, 3, 4])},
            {"codebook_dim": 4, "layernorm_after_project_in": True},
            {"heads": 2, "codebook_dim": choices.choice([3, 4])},
            {"heads": 3, "codebook_dim": 4, "separate_codebook_per_head": True},
            {"separate_codebook_per_head": True},
        ]
    )
    options |= choices.choice(
        [{}] * 5 + [{"channel_last": False}, {"accept_image_fmap": True}, {"accept_3d_fmap": True}]
    )
    if choices.random() < _SELDOM:
        options["vq_bridge"] = Shift(options.get("codebook_dim", options["dim"]))
    return options


def residual_vq(choices: random.Random) -> Options:
    stages = choices.choice([1, 2, 4])
    options = {"dim": choices.choice([6, 8]), "codebook_size": choices.choice([7, 16])}
    options |= {"num_quantizers": stages} | _of_one_stage(choices)
    options |= _some(
        choices,
        {
            "codebook_dim": (_OFTEN, [3, 4]),
            "shared_codebook": (_SELDOM, [True]),
            "diveq": (_SELDOM, [True]),
            "quantize_dropout": (_OFTEN, [True]),
            "quantize_dropout_cutoff_index": (_SELDOM, [0, 1]),
            "quantize_dropout_multiple_of": (_SELDOM, [2, 3]),
            "accept_image_fmap": (_SELDOM, [True]),
            "implicit_neural_codebook": (_SELDOM, [True]),
            "beam_size": (_OFTEN, [1, 2, 3]),
            "eval_beam_size": (_SELDOM, [1, 3]),
            "quant_grad_frac": (_OFTEN, [0.3, 1.0]),
        },
    )
    if choices.random() < _SELDOM:
        sizes = tuple(choices.choice([4, 7, 16]) for _ in range(stages))
        options |= {"codebook_size": sizes, "num_quantizers": None}
    if "eval_beam_size" in options:
        options.setdefault("beam_size", 2)
    return options


def grouped_residual_vq(choices: random.Random) -> Options:
    options = residual_vq(choices)
    groups = choices.choice([1, 2])
    return options | {"dim": options["dim"] * groups, "groups": groups}


def sim_vq(choices: random.Random) -> Options:
    options = {"dim": choices.choice([1, 6, 8]), "codebook_size": choices.choice([1, 7, 16])}
    return options | _some(
        choices,
        {
            "channel_first": (_OFTEN, [True]),
            "rotation_trick": (_OFTEN, [False]),
            "input_to_quantize_commit_loss_weight": (_OFTEN, [0.0, 1.0]),
            "commitment_weight": (_OFTEN, [0.0, 0.5]),
            "frozen_codebook_dim": (_OFTEN, [3, 10]),
        },
    )


def residual_sim_vq(choices: random.Random) -> Options:
    options = sim_vq(choices) | {"num_quantizers": choices.choice([1, 2, 4])}
    return options | _some(
        choices,
        {
            "quantize_dropout": (0.3, [True]),
            "quantize_dropout_cutoff_index": (_SELDOM, [0, 1]),
            "quantize_dropout_multiple_of": (_SELDOM, [2, 3]),
        },
    )


def random_projection_quantizer(choices: random.Random) -> Options:
    return {
        "dim": choices.choice([6, 8]),
        "codebook_size": choices.choice([7, 16]),
        "codebook_dim": choices.choice([2, 4]),
        **_some(choices, {"num_codebooks": (0.5, [1, 3]), "norm": (0.3, [False])}),
    }


CLASSES = {
    "VectorQuantize": vector_quantize,
    "ResidualVQ": residual_vq,
    "GroupedResidualVQ": grouped_residual_vq,
    "SimVQ": sim_vq,
    "ResidualSimVQ": residual_sim_vq,
    "RandomProjectionQuantizer": random_projection_quantizer,
}
# How often each is drawn.
WEIGHTS = (10, 7, 3, 1, 1, 1)


def shape(options: Options, choices: random.Random) -> tuple[int, ...]:
    """Draws the shape of x, whose dimensions follow from how vectors lie."""
    batch, dim = choices.choice([1, 2, 3]), options["dim"]
    spatial: tuple[int, ...] = (choices.choice([1, 5, 12]),)
    if options.get("accept_image_fmap"):
        spatial = (choices.choice([1, 3]), choices.choice([2, 4]))
    elif options.get("accept_3d_fmap"):
        spatial = (2, choices.choice([1, 3]), 2)
    elif choices.random() < 0.08 and "num_codebooks" not in options:
        spatial = ()
    first = options.get("channel_last") is False or options.get("channel_first")
    if first or len(spatial) > 1:
        return (batch, dim, *spatial)
    return (batch, *spatial, dim)


def call(name: str, options: Options, x: tuple[int, ...], choices: random.Random) -> Options:
    """Random arguments of a call with an input of shape x."""
    batch, tokens = x[0], x[1] if len(x) == 3 and x[-1] == options["dim"] else None
    numbers = torch.Generator().manual_seed(choices.randrange(2**31))
    mask = None
    if tokens is not None:
        mask = torch.rand(batch, tokens, generator=numbers) < 0.6
        mask[:, 0] = True
    if name in ("SimVQ", "RandomProjectionQuantizer"):
        return {}
    if name == "ResidualSimVQ":
        return _some(choices, {"return_all_codes": (0.3, [True])})
    drawn = {
        "mask": (_OFTEN if mask is not None else 0.0, [mask]),
        "sample_codebook_temp": (_OFTEN, [0.0, 0.5]),
        "freeze_codebook": (_OFTEN, [True, False]),
    }
    if name != "VectorQuantize":
        drawn["return_all_codes"] = (_OFTEN, [True])
        if name == "ResidualVQ":
            drawn["beam_size"] = (_SELDOM, [1, 2])
            drawn["rand_quantize_dropout_fixed_seed"] = (_OFTEN, [3, 7])
        return _some(choices, drawn)
    size = options["codebook_size"]
    drawn |= {
        "topk": (_OFTEN, [1, 3, 100]),
        "return_loss_breakdown": (_OFTEN, [True]),
        "accum_ema_update": (_SELDOM, [True]),
        "ema_update": (_SELDOM, [True, False]),
        "ema_update_weight": (_SELDOM, [0.5, torch.linspace(0, 1, size)]),
    }
    arguments = _some(choices, drawn)
    if options.get("heads", 1) > 1:  # the peer wants weights for each book, and will not have [K]
        arguments.pop("ema_update_weight", None)
    if tokens is not None and "mask" not in arguments and choices.random() < _SELDOM:
        arguments["lens"] = torch.randint(1, tokens + 1, (batch,), generator=numbers)
    if choices.random() < _SELDOM and tokens is not None:
        heads = (options["heads"],) if options.get("heads", 1) > 1 else ()
        wanted = torch.randint(-1, size, (batch, tokens, *heads), generator=numbers)
        arguments = {"indices": wanted.clamp(min=0) if size == 1 else wanted}
    return arguments
