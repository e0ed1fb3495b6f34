"""accelerate() on vector-quantize-pytorch: the numbers of all its options stay what they were."""

import copy
import functools
import io
import re

import pytest
import torch
from torch import nn
from vqp_pairs import DIM, SIZE, accelerated, assert_same, assert_same_steps, make, outcome, peer

from vqvae_fast import accelerate, compare

_LEARNS = {"learnable_codebook": True, "ema_update": False}
_SGD = functools.partial(torch.optim.SGD, lr=0.5)
_TOKENS = (4, 12, DIM)
_MASK = torch.rand(4, 12, generator=torch.Generator().manual_seed(1)) < 0.7

# The class, its options, the shape of x and further arguments of the call.
CASES = [
    ("VectorQuantize", options, _TOKENS, {})
    for options in (
        {},
        {"rotation_trick": False},
        {"decay": 0.9, "eps": 1e-3, "commitment_weight": 0.25},
        {"commitment_weight": 0.0},
        {"ema_update": False},
        {"manual_ema_update": True},
        {"kmeans_init": True, "kmeans_iters": 3},
        {"kmeans_init": True, "use_cosine_sim": True},
        {"freeze_codebook": True},
        {"threshold_ema_dead_code": 2},
        {"use_cosine_sim": True},
        {"use_cosine_sim": True, "rotation_trick": False, "threshold_ema_dead_code": 1},
        {"codebook_dim": 4},
        {"codebook_dim": 4, "layernorm_after_project_in": True},
        {"codebook_dim": 4, "use_cosine_sim": True},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
        {"heads": 2, "separate_codebook_per_head": True, "use_cosine_sim": True},
        _LEARNS,
        {**_LEARNS, "rotation_trick": False},
        {**_LEARNS, "threshold_ema_dead_code": 2},
        {**_LEARNS, "sync_update_v": 0.3},
        {**_LEARNS, "in_place_codebook_optimizer": _SGD},
        {"directional_reparam": True, "threshold_ema_dead_code": 1},
        {"affine_param": True, "threshold_ema_dead_code": 1},
        {"vq_bridge": nn.Linear(DIM, DIM)},
        {"route_gradients_to_input": False},
        {"orthogonal_reg_weight": 0.5},
        {"orthogonal_reg_weight": 0.5, "orthogonal_reg_active_codes_only": True},
        {"codebook_diversity_loss_weight": 0.5},
        {"commitment_use_cross_entropy_loss": True},
        {"stochastic_sample_codes": True},
        {"stochastic_sample_codes": True, "sample_codebook_temp": 0.0},
        {"straight_through": True, "rotation_trick": False},
    )
]
CASES += [
    ("VectorQuantize", options, shape, call)
    for options, shape, call in (
        ({}, (6, DIM), {}),
        ({"channel_last": False}, (4, DIM, 12), {}),
        ({"accept_image_fmap": True}, (2, DIM, 4, 3), {}),
        ({"accept_3d_fmap": True}, (2, DIM, 2, 4, 3), {}),
        ({}, _TOKENS, {"mask": _MASK}),
        ({"return_zeros_for_masked_padding": False}, _TOKENS, {"mask": _MASK}),
        ({"threshold_ema_dead_code": 1}, _TOKENS, {"lens": torch.tensor([3, 12, 1, 5])}),
        ({"affine_param": True}, _TOKENS, {"mask": _MASK}),
        ({}, _TOKENS, {"topk": 3}),
        ({"use_cosine_sim": True}, _TOKENS, {"topk": 2}),
        ({}, _TOKENS, {"return_loss_breakdown": True}),
        ({}, _TOKENS, {"freeze_codebook": True}),
        (_LEARNS, _TOKENS, {"freeze_codebook": True}),
        ({}, _TOKENS, {"ema_update": False}),
        ({}, _TOKENS, {"ema_update_weight": torch.linspace(0, 1, SIZE)}),
        ({}, _TOKENS, {"ema_update_weight": 0.5}),
        ({}, _TOKENS, {"ema_update_weight": lambda sums, counts: counts.clamp(max=1)}),
        ({"stochastic_sample_codes": True}, _TOKENS, {"sample_codebook_temp": 0.0}),
        ({}, _TOKENS, {"indices": torch.arange(48).view(4, 12) % SIZE}),
        ({"use_cosine_sim": True}, _TOKENS, {"indices": torch.arange(48).view(4, 12) % SIZE}),
    )
]
CASES += [
    (kind, options, (4, 12, DIM * options.get("groups", 1)), call)
    for kind, options, call in (
        ("ResidualVQ", {}, {}),
        ("ResidualVQ", {"rotation_trick": False}, {}),
        ("ResidualVQ", {}, {"return_all_codes": True}),
        ("ResidualVQ", {}, {"mask": _MASK}),
        ("ResidualVQ", {}, {"freeze_codebook": True}),
        ("ResidualVQ", {"codebook_dim": 4}, {}),
        ("ResidualVQ", {"codebook_size": (8, 16, 24)}, {}),
        ("ResidualVQ", {"use_cosine_sim": True}, {}),
        ("ResidualVQ", {"shared_codebook": True}, {}),
        # Some vectors are a code: with the rotation trick their gradient is rounding alone.
        (
            "ResidualVQ",
            {"kmeans_init": True, "kmeans_iters": 2, "codebook_size": 4, "rotation_trick": False},
            {},
        ),
        ("ResidualVQ", {"quantize_dropout": True}, {}),
        ("ResidualVQ", {"quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 7}),
        ("ResidualVQ", {"quant_grad_frac": 0.5}, {}),
        ("ResidualVQ", {"implicit_neural_codebook": True}, {}),
        ("ResidualVQ", {"diveq": True}, {}),
        ("ResidualVQ", {"beam_size": 3, **_LEARNS}, {}),
        ("ResidualVQ", {"threshold_ema_dead_code": 1}, {}),
        ("ResidualVQ", _LEARNS, {}),
        ("GroupedResidualVQ", {"groups": 2, "dim": 2 * DIM}, {}),
        ("GroupedResidualVQ", {"groups": 2, "dim": 2 * DIM, "quantize_dropout": True}, {}),
        ("SimVQ", {}, {}),
        ("SimVQ", {"rotation_trick": False, "commitment_weight": 0.5}, {}),
        ("SimVQ", {"frozen_codebook_dim": 5}, {}),
        ("SimVQ", {"codebook_transform": nn.Sequential(nn.Linear(DIM, DIM), nn.GELU())}, {}),
        ("ResidualSimVQ", {}, {}),
        ("ResidualSimVQ", {"quantize_dropout": True}, {"return_all_codes": True}),
        ("RandomProjectionQuantizer", {}, {}),
        ("RandomProjectionQuantizer", {"num_codebooks": 3, "norm": False}, {}),
    )
]
CASES += [("ResidualVQ", {}, (6, DIM), {}), ("SimVQ", {"channel_first": True}, (2, DIM, 4, 3), {})]


def _name(case):
    kind, options, shape, call = case
    words = [
        f"{n}={v if isinstance(v, (bool, int, float)) else type(v).__name__}"
        for n, v in (options | call).items()
    ]
    return "-".join([kind, *words, f"{len(shape)}d"])


@pytest.mark.quick(30)
@pytest.mark.parametrize("case", CASES, ids=map(_name, CASES))
def test_results_gradients_and_state_stay_those_of_the_library(case):
    kind, options, shape, call = case
    theirs = make(kind, **options)
    ours = copy.deepcopy(theirs)
    done = accelerate(ours, quiet=True)
    inputs = list(torch.randn(3, *shape))
    if "affine_param" not in options:  # its first statistics are uninitialised memory in eval
        assert_same_steps(theirs, ours, inputs[:1], training=False, **call)
    assert_same_steps(theirs, ours, inputs, **call)
    assert_same_steps(theirs, ours, inputs, training=False, **call)
    assert_same_steps(theirs, ours, inputs[:1], **call)
    done.undo()
    assert all(
        type(part) is type(other)
        for part, other in zip(ours.modules(), theirs.modules(), strict=True)
    )
    assert_same_steps(theirs, ours, inputs[:2], **call)


_MAKES_NO_DISTANCES = [
    case
    for case in CASES
    if not {"codebook_diversity_loss_weight", "commitment_use_cross_entropy_loss", "indices"}
    & (case[1] | case[3]).keys()
    and not {"straight_through", "implicit_neural_codebook"} & case[1].keys()
    and ("stochastic_sample_codes" not in case[1] or "sample_codebook_temp" in case[1] | case[3])
]


@pytest.mark.quick(15)
@pytest.mark.parametrize("case", _MAKES_NO_DISTANCES, ids=map(_name, _MAKES_NO_DISTANCES))
def test_no_distance_of_each_vector_to_each_code_is_made(case, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a number for each vector and code was made")

    kind, options, shape, call = case
    ours = accelerated(make(kind, **options))
    module = peer.vector_quantize_pytorch
    for where, name in ((module, "cdist"), (module, "kmeans"), (module, "gumbel_sample")):
        monkeypatch.setattr(where, name, refuse)
    monkeypatch.setattr(torch, "cdist", refuse)
    monkeypatch.setattr(nn.functional, "one_hot", refuse)
    for training in (True, False):
        ours.train(training)
        outcome(ours, torch.randn(shape), **call)


def test_vectors_without_length_get_what_the_library_gives_them():
    x = torch.randn(_TOKENS)
    x[:, ::3] = 0
    x[:, 1] *= 1e-7
    for kind, options in (
        ("VectorQuantize", {}),
        ("VectorQuantize", {"rotation_trick": False}),
        ("VectorQuantize", {"use_cosine_sim": True}),
        ("SimVQ", {}),
    ):
        theirs = make(kind, **options)
        ours = accelerated(theirs)
        assert_same_steps(theirs, ours, [x, x])
        assert_same_steps(theirs, ours, [x], training=False)


@pytest.mark.parametrize("rotation_trick", [True, False])
@pytest.mark.parametrize("kind", ["VectorQuantize", "SimVQ"])
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_numbers_out_of_range_are_not_hidden(kind, rotation_trick, value):
    theirs = make(kind, rotation_trick=rotation_trick)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    x[1, 2, 3] = value
    expected, found = (module(x.clone().requires_grad_()) for module in (theirs, ours))
    assert_same([*found], [*expected])


def test_cosine_codes_that_have_shrunk_are_chosen_by_their_product():
    theirs = make("VectorQuantize", use_cosine_sim=True)
    theirs._codebook.embed *= torch.linspace(0, 1, SIZE)[:, None]
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    assert_same_steps(theirs, ours, [x], training=False)
    assert_same_steps(theirs, ours, [x])


def test_batches_that_are_put_aside_count_later():
    theirs = make("VectorQuantize")
    ours = accelerated(theirs)
    x = torch.randn(3, *_TOKENS)
    assert_same_steps(theirs, ours, [x[0], x[1]], accum_ema_update=True)
    accelerate(ours, quiet=True).undo()  # what waits is where the library looks for it
    assert_same_steps(theirs, ours, [x[2]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ", "GroupedResidualVQ"])
def test_other_dtypes_stay_those_of_the_library(kind, dtype):
    theirs = make(kind)
    ours = accelerated(theirs)
    x = torch.randn(2, *_TOKENS)
    for module in (theirs, ours):
        module.to(dtype)
    assert_same_steps(theirs, ours, [x[0].to(dtype)], training=False)
    expected, found = (outcome(module.train(), x[0].to(dtype)) for module in (theirs, ours))
    assert_same(found, expected)
    for module in (theirs, ours):
        module.float()
    assert_same_steps(theirs, ours, [x[1]], training=False)


def test_attributes_that_are_set_later_count():
    theirs = make("VectorQuantize", learnable_codebook=True, ema_update=False)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    for name, value in (
        ("commitment_weight", 0.5),
        ("rotation_trick", False),
        ("freeze_codebook", True),
        ("sync_update_v", 0.5),
        ("route_gradients_to_input", False),
    ):
        for module in (theirs, ours):
            setattr(module, name, value)
        assert_same_steps(theirs, ours, [x])
    for module in (theirs, ours):
        module.freeze_codebook = False
        module._codebook.decay, module._codebook.ema_update = 0.5, True
    assert_same_steps(theirs, ours, [x, x])


def test_states_are_saved_and_loaded_as_before():
    theirs, other = make("ResidualVQ"), make("ResidualVQ")
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    ours.eval()
    ours(x)  # keeps its books packed
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    assert [*ours.state_dict()] == [*other.state_dict()]
    ours.load_state_dict(torch.load(file))
    assert_same_steps(other, ours, [x], training=False)


def test_the_report_names_what_was_done_and_what_was_left():
    class OtherForward(peer.VectorQuantize):
        def forward(self, x):
            return super().forward(x)

    model = nn.ModuleDict(
        {
            "stages": make("GroupedResidualVQ", dim=16, groups=2),
            "sim": make("SimVQ"),
            "draws": make("VectorQuantize", stochastic_sample_codes=True),
            "other": OtherForward(DIM, SIZE),
            "changed": make("VectorQuantize"),
        }
    )
    model["changed"]._codebook.gumbel_sample = lambda *args, **kwargs: None
    done = accelerate(model, quiet=True)
    report = str(done)
    assert re.search(r"stages.rvqs.1 \(ResidualVQ\): 3 stages of K=24, D=8, with 6 quant", report)
    assert "sim (SimVQ): K=24" in report
    assert "training with stochastic_sample_codes is as before" in report
    left = {place.name: place.about for place in done.left}
    assert left["other"] == "it has its own forward"
    assert "gumbel_sample" in left["changed"]
    assert "changed._codebook" not in left  # the report names the outermost


def test_classes_are_accelerated_by_the_name_of_the_library(monkeypatch):
    theirs, before = make("ResidualVQ"), make("ResidualVQ")
    x = torch.randn(_TOKENS)
    expected = outcome(theirs.eval(), x)
    done = accelerate("vector_quantize_pytorch", quiet=True)
    try:
        monkeypatch.delattr(peer.vector_quantize_pytorch, "cdist")
        assert_same(outcome(theirs, x), expected)
        outcome(before.train(), x)
        outcome(make("SimVQ"), x)
    finally:
        done.undo()
    with pytest.raises(NameError):
        theirs(x)


@pytest.mark.parametrize(
    ("kind", "options", "call"),
    [
        ("VectorQuantize", {}, {}),
        ("VectorQuantize", {"use_cosine_sim": True}, {}),
        ("VectorQuantize", {"heads": 2, "separate_codebook_per_head": True}, {}),
        ("VectorQuantize", {"heads": 2, "codebook_dim": 4}, {"mask": _MASK}),
        ("VectorQuantize", {}, {"topk": 2}),
        ("ResidualVQ", {"beam_size": 2}, {}),
        ("ResidualSimVQ", {}, {}),
    ],
)
def test_compare_judges_the_searches_of_the_library(kind, options, call):
    x = torch.randn(_TOKENS)
    theirs = make(kind, **options)
    for model in (theirs, accelerated(theirs)):
        judged = compare(model, {"x": x, **call})
        stages = 3 if kind.startswith("Residual") else 1
        assert len(judged) == stages
        heads = options.get("heads", 1)
        vectors = int(_MASK.sum()) if "mask" in call else x[..., 0].numel()
        for number, one in enumerate(judged):
            ways = options.get("beam_size", 1) if number else 1
            assert one.vectors == vectors * heads * ways
            assert one.differ == 0
    with torch.no_grad():  # a search that errs is seen
        first = (
            next(part for part in theirs.modules() if hasattr(part, "gumbel_sample"))
            if (kind != "ResidualSimVQ")
            else None
        )
    if first is not None and not call:
        chooses = first.gumbel_sample
        first.gumbel_sample = lambda *args, **kwargs: tuple(
            part.roll(1, dims=-1) if part.is_floating_point() else (part + 1) % SIZE
            for part in chooses(*args, **kwargs)
        )
        assert compare(theirs, x)[0].ours_nearer == compare(theirs, x)[0].differ > 0
