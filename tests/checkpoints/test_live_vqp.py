"""Live modules of vector-quantize-pytorch: the arguments that are read make the same module."""

import contextlib
import copy
import functools
import inspect
import random

import pytest
import torch
from torch import nn

peer = pytest.importorskip("vector_quantize_pytorch")

import quantizers  # noqa: E402
from beside_the_peer import compare, name, step  # noqa: E402

import vqvae_fast  # noqa: E402
from vqvae_fast.checkpoints.live import constructor_arguments, copy_state, peer_class  # noqa: E402

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
BRIDGE = nn.Linear(8, 8)
TRANSFORM = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
GRADIENT = {"learnable_codebook": True, "ema_update": False}
AFFINE = {"affine_param": True}

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
STAGES = {"num_quantizers": 3}
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
BASE = {
    "VectorQuantize": {"dim": 8, "codebook_size": 16},
    "ResidualVQ": {"dim": 8, "codebook_size": 16, **STAGES},
    "GroupedResidualVQ": {"dim": 16, "codebook_size": 16, **STAGES, "groups": 2},
    "SimVQ": {"dim": 8, "codebook_size": 16},
    "ResidualSimVQ": {"dim": 8, "codebook_size": 16, **STAGES},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 16, "codebook_dim": 4},
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


def made(kind, **options):
    return getattr(peer, kind)(**BASE[kind] | copy.deepcopy(options))


def from_live(theirs):
    """Ours from a live one, with its state."""
    ours = getattr(vqvae_fast, peer_class(theirs))(**constructor_arguments(theirs))
    copy_state(theirs, ours)
    return ours


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


BESIDE = [
    ("VectorQuantize", {}),
    ("VectorQuantize", {"use_cosine_sim": True, "decay": 0.5, "commitment_weight": 0.3}),
    ("VectorQuantize", {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}),
    ("VectorQuantize", {"codebook_dim": 4, "layernorm_after_project_in": True}),
    ("VectorQuantize", {"kmeans_init": True, "kmeans_iters": 3}),
    ("VectorQuantize", {"threshold_ema_dead_code": 2, "ema_update": False}),
    ("VectorQuantize", {"stochastic_sample_codes": True, "sample_codebook_temp": 0.2}),
    ("VectorQuantize", {"straight_through": True, "rotation_trick": False, "ema_update": False}),
    ("VectorQuantize", {"directional_reparam": True, "threshold_ema_dead_code": 1}),
    ("VectorQuantize", {"vq_bridge": BRIDGE}),
    ("VectorQuantize", {"orthogonal_reg_weight": 0.5, "orthogonal_reg_max_codes": 5}),
    ("VectorQuantize", {"codebook_diversity_loss_weight": 0.5, **GRADIENT}),
    ("VectorQuantize", {**GRADIENT, "in_place_codebook_optimizer": SGD, "sync_update_v": 0.2}),
    ("VectorQuantize", {"route_gradients_to_input": False, **GRADIENT}),
    ("ResidualVQ", {"codebook_dim": 4, "rotation_trick": False, "quant_grad_frac": 0.3}),
    ("ResidualVQ", {"shared_codebook": True, "commitment_weight": 0.2}),
    ("ResidualVQ", {"diveq": True}),
    ("ResidualVQ", {"quantize_dropout": True, "quantize_dropout_multiple_of": 2}),
    ("ResidualVQ", {"codebook_size": (16, 8, 4), "use_cosine_sim": True}),
    ("ResidualVQ", {"implicit_neural_codebook": True, "mlp_kwargs": {"depth": 2}}),
    ("ResidualVQ", {"beam_size": 3, "beam_score_quantizer_weights": [1.0, 0.5, 2.0], **GRADIENT}),
    ("GroupedResidualVQ", {"quantize_dropout": True}),
    ("SimVQ", {"codebook_transform": TRANSFORM, "frozen_codebook_dim": 6}),
    ("ResidualSimVQ", {"commitment_weight": 0.3, "rotation_trick": False}),
    ("ResidualSimVQ", {"codebook_transform": TRANSFORM, "frozen_codebook_dim": 6}),
]


# In eval the peer runs k-means, and adds DiVeQ's noise; ours does neither.
IN_EVAL = [case for case in BESIDE if not case[1].keys() & {"kmeans_init", "diveq"}]


@pytest.mark.parametrize(
    ("kind", "options", "training"),
    [*((*case, True) for case in BESIDE), *((*case, False) for case in IN_EVAL)],
    ids=name,
)
def test_beside_the_live_module(kind, options, training):
    """Outputs, losses, gradients and buffers of three steps."""
    theirs = made(kind, **options)
    ours = getattr(vqvae_fast, kind)(**copy.deepcopy(constructor_arguments(theirs)))
    copy_state(theirs, ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    compare((theirs, ours), (2, 12, BASE[kind]["dim"]), {}, training)


def test_affine_codes_after_a_first_batch():
    theirs = made("VectorQuantize", affine_param=True, affine_param_batch_decay=0.7)
    theirs(torch.randn(2, 12, 8))
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


def test_random_projection_quantizer():
    theirs = made("RandomProjectionQuantizer", num_codebooks=3, norm=False)
    ours = from_live(theirs)
    x = torch.randn(2, 12, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("commitment_weight", 0.5),
        ("freeze_codebook", True),
        ("rotation_trick", False),
        ("_codebook.decay", 0.1),
        ("_codebook.eps", 0.1),
        ("_codebook.ema_update", False),
        ("_codebook.sample_codebook_temp", 0.01),
        ("return_zeros_for_masked_padding", False),
    ],
)
def test_what_was_set_later_counts(path, value):
    theirs = made("VectorQuantize", stochastic_sample_codes=True)
    owner, _, attribute = path.rpartition(".")
    setattr(theirs.get_submodule(owner), attribute, value)
    assert constructor_arguments(theirs)[attribute] == value
    mask = torch.arange(12) < torch.tensor([[5], [9]])
    compare((theirs, from_live(theirs)), (2, 12, 8), {"mask": mask})


def _set_dropout(theirs):
    theirs.quantize_dropout, theirs.quantize_dropout_cutoff_index = True, 1


def _set_beams(theirs):
    theirs.eval_beam_size = 3
    theirs.beam_score_weights.copy_(torch.tensor([1.0, 0.2, 3.0]))


def _set_stages(theirs):
    theirs.quant_grad_frac = 0.5
    for layer in theirs.layers:
        layer.commitment_weight, layer.rotation_trick = 0.4, False
        layer._codebook.decay = 0.3


@pytest.mark.parametrize("change", [_set_dropout, _set_beams, _set_stages])
@pytest.mark.parametrize("training", [True, False])
def test_what_was_set_later_in_a_residual_quantizer_counts(change, training):
    theirs = made("ResidualVQ")
    change(theirs)
    compare((theirs, from_live(theirs)), (2, 12, 8), {}, training)


def test_numbers_of_quantize_dropout_without_it_are_left_out_where_they_are_out_of_range():
    theirs = made("ResidualVQ", quantize_dropout_cutoff_index=5)
    assert constructor_arguments(theirs)["quantize_dropout"] is False
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


def test_numbers_that_the_peer_takes_for_0():
    theirs = made("VectorQuantize", threshold_ema_dead_code=2)
    theirs._codebook.threshold_ema_dead_code = -1
    assert constructor_arguments(theirs)["threshold_ema_dead_code"] == 0
    assert constructor_arguments(made("ResidualVQ", quant_grad_frac=-1))["quant_grad_frac"] == 0


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_k_means_that_has_started_some_stages_only(kind):
    """As quantize dropout leaves it."""
    theirs = made(kind, kmeans_init=True)
    stages = [part for part in theirs.modules() if isinstance(part, peer.VectorQuantize)]
    for stage in stages[:3]:
        torch.nn.init.normal_(stage._codebook.embed)
        stage._codebook.initted.fill_(True)
    stages[1]._codebook.initted.fill_(False)
    assert constructor_arguments(theirs)["kmeans_init"] is True
    started = [bool(t) for name, t in from_live(theirs).state_dict().items() if "initted" in name]
    assert started == [bool(stage._codebook.initted) for stage in stages]


def test_a_loss_that_was_set_too_late_has_no_effect():
    """The peer decides what losses there are, and whether codes expire, when it is made."""
    theirs = made("VectorQuantize", commitment_weight=0.0)
    theirs.commitment_weight = theirs.orthogonal_reg_weight = 1.0
    theirs.codebook_diversity_loss_weight = 1.0
    theirs._codebook.threshold_ema_dead_code = 2
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


def test_the_optimizer_of_a_shared_codebook():
    """Those of the other stages have lost their parameters, and do nothing."""
    theirs = made("ResidualVQ", shared_codebook=True, **GRADIENT, in_place_codebook_optimizer=SGD)
    factory = constructor_arguments(theirs)["in_place_codebook_optimizer"]
    assert factory.settings["lr"] == 0.1


def test_settings_of_optimizers_are_copies():
    adam = functools.partial(torch.optim.Adam, lr=torch.tensor(0.1))
    theirs = made("VectorQuantize", **GRADIENT, in_place_codebook_optimizer=adam)
    factory = constructor_arguments(theirs)["in_place_codebook_optimizer"]
    theirs.in_place_codebook_optimizer.param_groups[0]["lr"].fill_(9)
    assert factory.settings["lr"] == torch.tensor(0.1)


def test_learning_rate_of_the_optimizer_is_the_present_one():
    theirs = made("VectorQuantize", **GRADIENT, in_place_codebook_optimizer=SGD)
    theirs.in_place_codebook_optimizer.param_groups[0]["lr"] = 0.01
    assert constructor_arguments(theirs)["in_place_codebook_optimizer"].settings["lr"] == 0.01


@pytest.mark.parametrize("optimizer", [SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ"])
def test_state_of_optimizers_and_batches_that_were_put_aside(kind, optimizer):
    theirs = made(kind, **GRADIENT, in_place_codebook_optimizer=optimizer)
    theirs(torch.randn(2, 12, 8))
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


def test_batches_that_were_put_aside():
    theirs = made("VectorQuantize")
    theirs(torch.randn(2, 12, 8), accum_ema_update=True)
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


def test_modes_and_frozen_parameters():
    theirs = made("ResidualVQ", codebook_dim=4)
    theirs.project_out.requires_grad_(False)
    theirs.layers[1].eval()
    ours = from_live(theirs)
    assert [p.requires_grad for p in ours.parameters()] == [True, True, False, False]
    assert [layer.training for layer in ours.layers] == [True, False, True]
    assert ours.training


def test_default_maps_of_codes_are_not_shared_with_the_live_module():
    theirs = made("ResidualSimVQ")
    assert "codebook_transform" not in constructor_arguments(theirs)
    biased = made("SimVQ", codebook_transform=nn.Linear(8, 8))
    assert constructor_arguments(biased)["codebook_transform"] is biased.code_transform
    hooked = made("SimVQ")
    hooked.code_transform.register_forward_hook(lambda module, given, codes: 2 * codes)
    assert constructor_arguments(hooked)["codebook_transform"] is hooked.code_transform
    one = nn.Linear(8, 8, bias=False)
    shared = peer.ResidualSimVQ(**BASE["ResidualSimVQ"], codebook_transform=one)
    assert constructor_arguments(shared)["codebook_transform"] is one


def test_copies_of_live_modules():
    theirs = copy.deepcopy(made("ResidualVQ", **GRADIENT, in_place_codebook_optimizer=SGD))
    compare((theirs, from_live(theirs)), (2, 12, 8), {})


class Switching(nn.Module):
    """Changes what a method of all modules does."""

    def train(self, mode=True):
        return super().train(False)


def test_subclasses():
    class Named(peer.VectorQuantize):
        """Adds to what the class does, and changes nothing of it."""

        def __init__(self):
            super().__init__(8, 16, commitment_weight=0.5)

        def usage(self):
            return self._codebook.cluster_size

    class Louder(peer.VectorQuantize):
        def forward(self, x):
            return super().forward(2 * x)

    class Mixed(peer.VectorQuantize, Switching):
        pass

    class Imposter(nn.Module):
        pass

    Imposter.__qualname__ = "VectorQuantize"
    assert peer_class(Named()) == "VectorQuantize"
    assert constructor_arguments(Named())["commitment_weight"] == 0.5
    with pytest.raises(ValueError, match=r"forward of the live module .* not what a Vector"):
        constructor_arguments(Louder(8, 16))
    with pytest.raises(ValueError, match="train of the live module"):
        constructor_arguments(Mixed(8, 16))
    assert peer_class(Imposter()) is None
    with pytest.raises(TypeError, match="module must be one of VectorQuantize, ResidualVQ"):
        constructor_arguments(nn.Linear(2, 2))


def _rule_like(parameters):
    """An optimizer whose constructor takes more than its groups show."""

    class Rule(torch.optim.Optimizer):
        def __init__(self, parameters, strength):
            super().__init__(parameters, {})

    return Rule(parameters, 3)


def _two_groups(parameters):
    return torch.optim.SGD([{"params": list(parameters)}, {"params": [], "lr": 1.0}], lr=0.1)


REFUSED = {
    "_codebook": ("VectorQuantize", {}, lambda m: setattr(m, "_codebook", nn.Linear(2, 2))),
    "gumbel_sample": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "gumbel_sample", lambda *a, **k: None),
    ),
    "sample_fn": ("VectorQuantize", {}, lambda m: setattr(m._codebook, "sample_fn", print)),
    "forward": ("VectorQuantize", {}, lambda m: setattr(m, "forward", print)),
    "_codebook ": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[0]._codebook, "init_embed_", print),
    ),
    "dim": (
        "SimVQ",
        {},
        lambda m: setattr(m, "code_transform", nn.Sequential(nn.Linear(8, 8), nn.Flatten(0))),
    ),
    "project_in": (
        "VectorQuantize",
        {"codebook_dim": 4},
        lambda m: setattr(m, "project_in", nn.Sequential(m.project_in, nn.ReLU())),
    ),
    "replace_sample_fn": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "replace_sample_fn", print),
    ),
    "use_cosine_sim ": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "transform_input", torch.nn.functional.normalize),
    ),
    "codebook_size": ("VectorQuantize", {}, lambda m: setattr(m, "codebook_size", 7)),
    "codebook_size ": ("ResidualVQ", {}, lambda m: setattr(m, "codebook_sizes", (16, 16, 7))),
    "codebook_size  ": ("SimVQ", {}, lambda m: setattr(m, "codebook_size", 7)),
    "separate_codebook_per_head": (
        "VectorQuantize",
        {"heads": 2},
        lambda m: setattr(m, "separate_codebook_per_head", True),
    ),
    "project_in ": (
        "VectorQuantize",
        {"codebook_dim": 4, "layernorm_after_project_in": True},
        lambda m: setattr(m.project_in[1], "eps", 0.1),
    ),
    "project_in  ": (
        "ResidualVQ",
        {"codebook_dim": 4},
        lambda m: setattr(m, "project_out", nn.Conv1d(4, 8, 1)),
    ),
    "threshold_ema_dead_code ": (
        "VectorQuantize",
        {"threshold_ema_dead_code": 2, "ema_update": False},
        lambda m: setattr(m._codebook, "threshold_ema_dead_code", 0),
    ),
    "heads": ("ResidualVQ", {}, lambda m: setattr(m.layers[2], "heads", 2)),
    "groups": ("GroupedResidualVQ", {}, lambda m: setattr(m, "groups", 3)),
    "mlp_kwargs ": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: m.mlps[1].layers.append(m.mlps[1].layers[0]),
    ),
    "channel_first": ("ResidualSimVQ", {}, lambda m: setattr(m, "channel_first", True)),
    "num_quantizers ": ("ResidualSimVQ", {}, lambda m: m.layers.append(m.layers[0])),
    "num_codebooks": (
        "RandomProjectionQuantizer",
        {},
        lambda m: setattr(m, "num_codebooks", 2),
    ),
    "dim ": ("RandomProjectionQuantizer", {}, lambda m: setattr(m.vq, "dim", 5)),
    "learnable_codebook": (
        "VectorQuantize",
        {"orthogonal_reg_weight": 1.0},
        lambda m: setattr(m, "orthogonal_reg_weight", 0.0),
    ),
    "threshold_ema_dead_code": (
        "VectorQuantize",
        {"threshold_ema_dead_code": 2},
        lambda m: setattr(m._codebook, "threshold_ema_dead_code", 1),
    ),
    "sync_codebook": ("VectorQuantize", {}, lambda m: setattr(m._codebook, "use_ddp", True)),
    "use_cosine_sim": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "use_cosine_sim", True),
    ),
    "commitment_weight": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[1], "commitment_weight", 0.5),
    ),
    "decay": (
        "GroupedResidualVQ",
        {},
        lambda m: setattr(m.rvqs[1].layers[0]._codebook, "decay", 0),
    ),
    "num_quantizers": ("ResidualVQ", {}, lambda m: m.layers.append(m.layers[0])),
    "shared_codebook": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[1], "_codebook", m.layers[0]._codebook),
    ),
    "quant_grad_frac": ("ResidualVQ", {"diveq": True}, lambda m: setattr(m, "quant_grad_frac", 0)),
    "mlps": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: m.mlps.__setitem__(0, nn.Linear(8, 8)),
    ),
    "mlp_kwargs": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: setattr(m.mlps[0], "l2norm_output", True),
    ),
    "codebook_transform": (
        "ResidualSimVQ",
        {},
        lambda m: setattr(m.layers[1], "code_transform", nn.Linear(8, 8)),
    ),
    "rotation_trick": (
        "ResidualSimVQ",
        {},
        lambda m: setattr(m.layers[1], "rotation_trick", False),
    ),
    "norm": ("RandomProjectionQuantizer", {}, lambda m: setattr(m, "norm", nn.LayerNorm(8))),
    "kmeans_init": ("VectorQuantize", {}, lambda m: m.to("meta")),
    "in_place_codebook_optimizer": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": _rule_like},
        lambda m: None,
    ),
    "in_place_codebook_optimizer ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": _two_groups},
        lambda m: None,
    ),
    "in_place_codebook_optimizer  ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": SGD},
        lambda m: setattr(m._codebook, "embed", nn.Parameter(torch.randn(1, 16, 8))),
    ),
    "in_place_codebook_optimizer   ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": SGD},
        lambda m: torch.optim.lr_scheduler.ExponentialLR(m.in_place_codebook_optimizer, 0.9),
    ),
    "eps": ("VectorQuantize", {}, lambda m: delattr(m._codebook, "eps")),
    "extra.weight": ("VectorQuantize", {}, lambda m: m.add_module("extra", nn.Linear(2, 2, False))),
}


@pytest.mark.parametrize("setting", REFUSED)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_nothing_is_guessed(setting):
    kind, options, change = REFUSED[setting]
    theirs = getattr(peer, kind)(**BASE[kind], **options)
    change(theirs)
    with pytest.raises(ValueError, match=f"^{setting.strip()} of the live module cannot be taken"):
        constructor_arguments(theirs)


def test_an_argument_of_another_version_is_refused():
    class VectorQuantize(peer.VectorQuantize):
        def __init__(self, dim, codebook_size, novelty=True):
            super().__init__(dim, codebook_size)

    VectorQuantize.__qualname__ = "VectorQuantize"
    VectorQuantize.__module__ = "vector_quantize_pytorch.newer"
    with pytest.raises(ValueError, match="novelty of the live module"):
        constructor_arguments(VectorQuantize(8, 16))


def test_a_module_that_ours_refuses():
    theirs = made("VectorQuantize")
    theirs.accept_image_fmap = theirs.accept_3d_fmap = True
    with pytest.raises(ValueError, match="VectorQuantize does not support this module: accept_"):
        constructor_arguments(theirs)


def test_nothing_is_drawn_or_changed():
    theirs = made("SimVQ", codebook_transform=nn.Sequential(nn.Linear(8, 8), nn.Dropout()))
    generator = torch.get_rng_state()
    constructor_arguments(theirs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(part.training for part in theirs.modules())
