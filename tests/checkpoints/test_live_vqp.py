"""Ours from live modules of vector-quantize-pytorch beside them: results, gradients, state."""

import copy
import functools

import pytest
import torch
from beside_the_peer import compare, name
from live_peers import BASE, BRIDGE, GRADIENT, SGD, TRANSFORM, from_live, made, peer
from torch import nn

import vqvae_fast
from vqvae_fast.checkpoints.live import constructor_arguments, copy_state

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
