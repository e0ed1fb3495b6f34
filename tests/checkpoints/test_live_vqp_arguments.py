"""Live modules of vector-quantize-pytorch: every argument of their constructors is read."""

import contextlib
import copy
import inspect
import random

import pytest
import quantizers
import torch
from beside_the_peer import step
from live_peers import AFFINE, BASE, BRIDGE, GRADIENT, SGD, TRANSFORM, made, peer
from torch import nn

import vqvae_fast
from vqvae_fast.checkpoints.live import constructor_arguments

# For each argument of VectorQuantize: options with a value of it that is not the default.
OF_VECTOR_QUANTIZE = {
    "dim": {"dim": 6},
    "codebook_size": {"codebook_size": 7},
    "codebook_dim": {"codebook_dim": 3},
    "heads": {"heads": 2, "codebook_dim": 4},
    "separate_codebook_per_head": {"heads": 2, "separate_codebook_per_head": True},
    "decay": {"decay": 0.3},
    "eps": {"eps": 1e-3},
    "freeze_codebook": {"freeze_codebook": True},
    "kmeans_init": {"kmeans_init": True},
    "kmeans_iters": {"kmeans_iters": 3},
    "sync_kmeans": {"sync_kmeans": False, "sync_codebook": True},
    "use_cosine_sim": {"use_cosine_sim": True},
    "layernorm_after_project_in": {"codebook_dim": 4, "layernorm_after_project_in": True},
    "threshold_ema_dead_code": {"threshold_ema_dead_code": 2},
    "channel_last": {"channel_last": False},
    "accept_image_fmap": {"accept_image_fmap": True},
    "accept_3d_fmap": {"accept_3d_fmap": True},
    "commitment_weight": {"commitment_weight": 0.25},
    "commitment_use_cross_entropy_loss": {"commitment_use_cross_entropy_loss": True},
    "orthogonal_reg_weight": {"orthogonal_reg_weight": 0.5},
    "orthogonal_reg_active_codes_only": {"orthogonal_reg_active_codes_only": True},
    "orthogonal_reg_max_codes": {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 5},
    "codebook_diversity_loss_weight": {"codebook_diversity_loss_weight": 0.5},
    "codebook_diversity_temperature": {"codebook_diversity_temperature": 10.0},
    "stochastic_sample_codes": {"stochastic_sample_codes": True},
    "sample_codebook_temp": {"sample_codebook_temp": 0.3},
    "straight_through": {"straight_through": True, "rotation_trick": False},
    "rotation_trick": {"rotation_trick": False},
    "directional_reparam": {"directional_reparam": True, "threshold_ema_dead_code": 1},
    "directional_reparam_variance": {"directional_reparam_variance": 1e-2},
    "sync_codebook": {"sync_codebook": True},
    "sync_affine_param": {**AFFINE, "sync_affine_param": True},
    "ema_update": {"ema_update": False},
    "vq_bridge": {"vq_bridge": BRIDGE},
    "manual_ema_update": {"manual_ema_update": True},
    "learnable_codebook": GRADIENT,
    "in_place_codebook_optimizer": {**GRADIENT, "in_place_codebook_optimizer": SGD},
    "manual_in_place_optimizer_update": {"manual_in_place_optimizer_update": True},
    "affine_param": AFFINE,
    "affine_param_batch_decay": {**AFFINE, "affine_param_batch_decay": 0.5},
    "affine_param_codebook_decay": {**AFFINE, "affine_param_codebook_decay": 0.4},
    "sync_update_v": {**GRADIENT, "sync_update_v": 0.3},
    "return_zeros_for_masked_padding": {"return_zeros_for_masked_padding": False},
    "route_gradients_to_input": {"route_gradients_to_input": False},
}
DROPOUT = {
    "quantize_dropout": {"quantize_dropout": True},
    "quantize_dropout_cutoff_index": {"quantize_dropout_cutoff_index": 1},
    "quantize_dropout_multiple_of": {"quantize_dropout_multiple_of": 2},
}
_ONE_HEAD = ("heads", "layernorm_after_project_in")
OF_RESIDUAL_VQ = {
    **{key: value for key, value in OF_VECTOR_QUANTIZE.items() if key not in _ONE_HEAD},
    **DROPOUT,
    "separate_codebook_per_head": {"separate_codebook_per_head": True},
    "num_quantizers": {"num_quantizers": 2},
    "codebook_size": {"codebook_size": (7, 5, 4)},
    "shared_codebook": {"shared_codebook": True},
    "diveq": {"diveq": True},
    "implicit_neural_codebook": {"implicit_neural_codebook": True},
    "mlp_kwargs": {
        "implicit_neural_codebook": True,
        "mlp_kwargs": {"dim_hidden": 6, "depth": 2},
    },
    "beam_size": {"beam_size": 2},
    "eval_beam_size": {"beam_size": 1, "eval_beam_size": 3},
    "beam_score_quantizer_weights": {"beam_score_quantizer_weights": [1.0, 0.5, 2.0]},
    "quant_grad_frac": {"quant_grad_frac": 0.3},
}
OF_SIM_VQ = {
    "dim": {"dim": 6},
    "codebook_size": {"codebook_size": 7},
    "codebook_transform": {"codebook_transform": TRANSFORM, "frozen_codebook_dim": 6},
    "channel_first": {"channel_first": True},
    "rotation_trick": {"rotation_trick": False},
    "input_to_quantize_commit_loss_weight": {"input_to_quantize_commit_loss_weight": 0.5},
    "commitment_weight": {"commitment_weight": 0.3},
    "frozen_codebook_dim": {"frozen_codebook_dim": 3},
}
NOT_DEFAULT = {
    "VectorQuantize": OF_VECTOR_QUANTIZE,
    "ResidualVQ": OF_RESIDUAL_VQ,
    "GroupedResidualVQ": {**OF_RESIDUAL_VQ, "groups": {"groups": 2, "vq_bridge": None}},
    "SimVQ": OF_SIM_VQ,
    "ResidualSimVQ": {**OF_SIM_VQ, **DROPOUT, "num_quantizers": {"num_quantizers": 2}},
    "RandomProjectionQuantizer": {
        "num_codebooks": {"num_codebooks": 3},
        "norm": {"norm": False},
        "codebook_dim": {"codebook_dim": 3},
        "dim": {"dim": 6},
        "codebook_size": {"codebook_size": 7},
        "decay": {"decay": 0.3},
        "kmeans_init": {"kmeans_init": True},
        "layernorm_after_project_in": {
            "num_codebooks": 2,
            "layernorm_after_project_in": True,
        },
        "sample_codebook_temp": {"sample_codebook_temp": 0.5},
        "stochastic_sample_codes": {"stochastic_sample_codes": True},
    },
}
# Arguments that are not in the result, and why.
NOT_READ = {
    "heads of ResidualVQ": "must be 1",
    "heads of ResidualSimVQ": "must be 1",
    "init_fn of SimVQ": "has acted on the frozen codes, which are state",
    "layernorm_after_project_in of ResidualVQ": "has no effect: its stages have no projections",
    "cosine_search of VectorQuantize": "ours only",
    "project_per_stage of ResidualVQ": "ours only",
}
CASES = [(kind, argument) for kind, table in NOT_DEFAULT.items() for argument in table]


def signature(kind):
    """The arguments of our class, without those that it hands on."""
    parameters = inspect.signature(getattr(vqvae_fast, kind)).parameters.values()
    return {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("kind", NOT_DEFAULT)
def test_every_argument_is_in_a_table(kind):
    listed = {entry.split(" of ")[0] for entry in NOT_READ if entry.endswith(f" of {kind}")}
    assert signature(kind) <= NOT_DEFAULT[kind].keys() | listed
    assert not listed & NOT_DEFAULT[kind].keys()


def test_every_argument_of_a_stage_is_in_a_table():
    """What residual quantizers hand on to their stages."""
    for kind, stage in (("ResidualVQ", "VectorQuantize"), ("ResidualSimVQ", "SimVQ")):
        left = NOT_DEFAULT[stage].keys() - NOT_DEFAULT[kind].keys()
        assert {f"{argument} of {kind}" for argument in left} <= NOT_READ.keys()
    assert NOT_DEFAULT["ResidualVQ"].keys() <= NOT_DEFAULT["GroupedResidualVQ"].keys()


@pytest.mark.parametrize(("kind", "argument"), CASES)
def test_every_argument_is_read(kind, argument):
    options = BASE[kind] | NOT_DEFAULT[kind][argument]
    if kind == "GroupedResidualVQ" and argument == "dim":
        options["dim"] = 12
    elif kind == "GroupedResidualVQ":
        options["dim"] = 8 * options["groups"]
    theirs = getattr(peer, kind)(**options)
    got = constructor_arguments(theirs)
    expected = options[argument]
    if argument == "in_place_codebook_optimizer":
        assert got[argument].kind is torch.optim.SGD
        assert got[argument].settings["lr"] == 0.1
        assert got[argument].settings["momentum"] == 0.9
    elif argument in ("vq_bridge", "codebook_transform"):
        assert got[argument] is expected
    elif argument == "codebook_dim" and kind == "RandomProjectionQuantizer":
        assert got[argument] == 3
    else:
        assert got[argument] == expected
    default = constructor_arguments(made(kind)).get(argument)
    assert got[argument] != default or argument == "groups"


def plain(module):
    """All that a module and its parts keep beside tensors, by name."""
    kept = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for attribute, value in vars(part).items():
            if isinstance(value, (bool, int, float, str, tuple, type(None))):
                kept[f"{path}.{attribute}"] = value
    return kept


def draw(seed):
    """A random class, the shape of what it takes, and both modules with the same random options."""
    choices = random.Random(seed)
    while True:
        (kind,) = choices.choices(list(quantizers.CLASSES), quantizers.WEIGHTS)
        options = quantizers.CLASSES[kind](choices)
        shape = quantizers.shape(options, choices)
        try:
            theirs = getattr(peer, kind)(**copy.deepcopy(options))
            ours = getattr(vqvae_fast, kind)(**copy.deepcopy(options))
        except (AssertionError, ValueError):
            continue
        return kind, shape, theirs, ours


def at_work(module, shape):
    """A training step with gradients, and a call in eval: all tensors, by place."""
    torch.manual_seed(3)
    x = torch.randn(shape)
    if isinstance(module.train(), vqvae_fast.RandomProjectionQuantizer):
        return [module(x.view(shape[0], -1, shape[-1]))]
    results = []
    # An optimizer that moves codes before they are used does not go with everything around it.
    with contextlib.suppress(RuntimeError):
        results = [tensor for part in step(module, None, x, {}) for tensor in part]
    return [*results, *module.eval()(x), *module.state_dict().values()]


@pytest.mark.quick(60)
@pytest.mark.parametrize("seed", range(400))
def test_random_options_and_what_is_read_make_the_same_module(seed):
    """Bit for bit: ours from the live module, and ours from the options that it was made with."""
    kind, shape, theirs, ours = draw(seed)
    live = getattr(vqvae_fast, kind)(**constructor_arguments(theirs))
    assert plain(live) == plain(ours)
    ours.load_state_dict(theirs.state_dict())
    live.load_state_dict(theirs.state_dict())
    for got, expected in zip(at_work(live, shape), at_work(ours, shape), strict=True):
        assert got is expected is None or torch.equal(got.nan_to_num(), expected.nan_to_num())


def test_nothing_is_drawn_or_changed():
    theirs = made("SimVQ", codebook_transform=nn.Sequential(nn.Linear(8, 8), nn.Dropout()))
    generator = torch.get_rng_state()
    constructor_arguments(theirs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(part.training for part in theirs.modules())
