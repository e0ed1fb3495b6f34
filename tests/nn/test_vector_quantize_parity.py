"""VectorQuantize beside vector-quantize-pytorch's: the same state and seed, several steps."""

import functools

import pytest
import torch
from beside_the_peer import check, name, pair

from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize

BASE = {"dim": 8, "codebook_size": 16}
TOKENS = (2, 12, 8)
MASK = torch.arange(12) < torch.tensor([[5], [9]])
GRADIENT = {"learnable_codebook": True, "ema_update": False}
SHARED_HEADS = {"heads": 2, "codebook_dim": 4}
SEPARATE_HEADS = {**SHARED_HEADS, "separate_codebook_per_head": True}


def own_codes(codes):
    """Gives every vector codes of its own."""
    scale = torch.linspace(0.5, 1.5, 24).view(1, 2, 12, 1, 1)
    return codes[:, None, None].expand(-1, 2, 12, -1, -1) * scale


CONSTRUCTOR = [
    {},
    {"rotation_trick": False},
    {"use_cosine_sim": True},
    {"use_cosine_sim": True, "rotation_trick": False, "decay": 0.5},
    SHARED_HEADS,
    SEPARATE_HEADS,
    {**SHARED_HEADS, "codebook_dim": 3},
    {**SEPARATE_HEADS, "codebook_dim": 3, "use_cosine_sim": True},
    {"separate_codebook_per_head": True},
    {"codebook_dim": 4},
    {"codebook_dim": 4, "layernorm_after_project_in": True},
    {"dim": 1},
    {"codebook_size": 1},
    {"decay": 0.5, "eps": 1e-3},
    {"freeze_codebook": True},
    {"kmeans_init": True},
    {"kmeans_init": True, "kmeans_iters": 2, **SEPARATE_HEADS},
    {"kmeans_init": True, "use_cosine_sim": True},
    {"kmeans_init": True, **GRADIENT},
    {"threshold_ema_dead_code": 2},
    {"threshold_ema_dead_code": 2, **SEPARATE_HEADS},
    {"threshold_ema_dead_code": 2, "use_cosine_sim": True},
    {"threshold_ema_dead_code": 2, "ema_update": False},
    {"threshold_ema_dead_code": 2, **GRADIENT},
    {"commitment_weight": 0.3},
    {"commitment_weight": 0.0},
    {"commitment_use_cross_entropy_loss": True, "ema_update": False},
    {"commitment_use_cross_entropy_loss": True, "ema_update": False, **SHARED_HEADS},
    {"commitment_use_cross_entropy_loss": True, "ema_update": False, **SEPARATE_HEADS},
    {"commitment_use_cross_entropy_loss": True, **GRADIENT},
    {"commitment_use_cross_entropy_loss": True, "ema_update": False, "use_cosine_sim": True},
    {"orthogonal_reg_weight": 2.0},
    {"orthogonal_reg_weight": 2.0, **SEPARATE_HEADS},
    {"orthogonal_reg_weight": 2.0, "use_cosine_sim": True},
    {"orthogonal_reg_weight": 2.0, "orthogonal_reg_active_codes_only": True},
    {"orthogonal_reg_weight": 2.0, "orthogonal_reg_max_codes": 5},
    {"codebook_diversity_loss_weight": 0.7, "ema_update": False},
    {
        "codebook_diversity_loss_weight": 0.7,
        "codebook_diversity_temperature": 1.0,
        "ema_update": False,
        **SHARED_HEADS,
    },
    {"codebook_diversity_loss_weight": 0.7, **SEPARATE_HEADS, **GRADIENT},
    {"stochastic_sample_codes": True},
    {"stochastic_sample_codes": True, "use_cosine_sim": True},
    {"stochastic_sample_codes": True, **SEPARATE_HEADS},
    {"stochastic_sample_codes": True, "sample_codebook_temp": 0.0},
    {"stochastic_sample_codes": True, "straight_through": True, "rotation_trick": False},
    {
        "stochastic_sample_codes": True,
        "straight_through": True,
        "rotation_trick": False,
        "route_gradients_to_input": False,
        "ema_update": False,
    },
    {"directional_reparam": True, "threshold_ema_dead_code": 1},
    {
        "directional_reparam": True,
        "directional_reparam_variance": 0.1,
        "threshold_ema_dead_code": 1,
        **SEPARATE_HEADS,
    },
    GRADIENT,
    {**GRADIENT, **SEPARATE_HEADS},
    {**GRADIENT, "rotation_trick": False, "sync_update_v": 0.5},
    {**GRADIENT, "sync_update_v": 1.0},
    {**GRADIENT, "route_gradients_to_input": False},
    {
        **GRADIENT,
        "in_place_codebook_optimizer": functools.partial(torch.optim.SGD, lr=0.5),
    },
    {
        **GRADIENT,
        **SHARED_HEADS,
        "in_place_codebook_optimizer": functools.partial(torch.optim.SGD, lr=0.5),
        "manual_in_place_optimizer_update": True,
    },
    {"affine_param": True},
    {"affine_param": True, "affine_param_batch_decay": 0.5, "affine_param_codebook_decay": 0.3},
    {"affine_param": True, **GRADIENT},
    {"manual_ema_update": True},
    {"ema_update": False},
    {"vq_bridge": torch.nn.Linear(8, 8)},
]
CALLS = [
    ({}, {"mask": MASK}),
    ({}, {"lens": torch.tensor([5, 9])}),
    ({"return_zeros_for_masked_padding": False}, {"mask": MASK}),
    (GRADIENT, {"mask": MASK}),
    ({"affine_param": True}, {"mask": MASK}),
    (
        {**GRADIENT, "in_place_codebook_optimizer": functools.partial(torch.optim.SGD, lr=0.5)},
        {"mask": MASK},
    ),
    (
        {"commitment_use_cross_entropy_loss": True, "ema_update": False, **SHARED_HEADS},
        {"mask": MASK},
    ),
    ({}, {"return_loss_breakdown": True}),
    ({}, {"freeze_codebook": True}),
    ({"freeze_codebook": True}, {"freeze_codebook": False}),
    ({}, {"topk": 3}),
    (GRADIENT, {"ema_update": True}),
    ({**GRADIENT, "rotation_trick": False}, {"ema_update": True}),
    ({}, {"topk": 100}),
    ({"commitment_weight": 0.0}, {"topk": 3}),
    ({"use_cosine_sim": True, "codebook_dim": 4}, {"topk": 2}),
    ({}, {"topk": 2, "mask": MASK}),
    ({"stochastic_sample_codes": True}, {"topk": 2}),
    ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.3}),
    ({"ema_update": False}, {"indices": torch.arange(24).view(2, 12) % 17 - 1}),
    ({"ema_update": False}, {"ema_update": True}),
    ({}, {"ema_update_weight": torch.linspace(0, 1, 16)}),
    ({}, {"ema_update_weight": torch.linspace(0, 1, 16)[None]}),
    ({}, {"ema_update_weight": lambda sums, counts: counts / (1 + counts)}),
    ({}, {"accum_ema_update": True}),
    ({}, {"codebook_transform_fn": own_codes}),
    (GRADIENT, {"codebook_transform_fn": own_codes}),
    ({"use_cosine_sim": True}, {"codebook_transform_fn": own_codes}),
    ({"stochastic_sample_codes": True}, {"codebook_transform_fn": own_codes}),
    ({"commitment_use_cross_entropy_loss": True, **GRADIENT}, {"codebook_transform_fn": own_codes}),
    ({"codebook_diversity_loss_weight": 0.5, **GRADIENT}, {"codebook_transform_fn": own_codes}),
]
LAYOUTS = [
    ({"channel_last": False}, (2, 8, 12)),
    ({"accept_image_fmap": True}, (2, 8, 3, 4)),
    ({"accept_image_fmap": True, **SHARED_HEADS}, (2, 8, 3, 4)),
    ({"accept_image_fmap": True, **SEPARATE_HEADS, "codebook_dim": 3}, (2, 8, 3, 4)),
    ({"accept_3d_fmap": True}, (2, 8, 2, 3, 2)),
    ({}, (5, 8)),
    (SEPARATE_HEADS, (5, 8)),
]


@pytest.mark.parametrize("options", CONSTRUCTOR, ids=name)
def test_training(options):
    check(VectorQuantize, BASE | options, (*TOKENS[:2], options.get("dim", 8)), {})


# In eval the peer runs k-means and learns affine statistics, before which it reads empty memory.
# And a cosine codebook with a gradient has no unit length there.
EVALUATED = [
    o
    for o in CONSTRUCTOR
    if not {"kmeans_init", "affine_param"} & o.keys()
    and not {"orthogonal_reg_weight", "use_cosine_sim"} <= o.keys()
]


@pytest.mark.parametrize("options", EVALUATED, ids=name)
def test_evaluation(options):
    check(
        VectorQuantize,
        BASE | options,
        (*TOKENS[:2], options.get("dim", 8)),
        {},
        training=False,
        steps=1,
    )


@pytest.mark.parametrize(("options", "call"), CALLS, ids=name)
def test_arguments_of_a_call(options, call):
    check(VectorQuantize, BASE | options, TOKENS, call)


@pytest.mark.parametrize(
    ("options", "call"), [c for c in CALLS if "affine_param" not in c[0]], ids=name
)
def test_arguments_of_a_call_in_evaluation(options, call):
    check(VectorQuantize, BASE | options, TOKENS, call, training=False, steps=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", [{}, {"topk": 3}], ids=name)
@pytest.mark.parametrize(("options", "shape"), LAYOUTS, ids=name)
def test_layouts(options, shape, call, training):
    if call and "heads" in options:
        pytest.skip("topk is for one head")
    check(VectorQuantize, BASE | options, shape, call, training, steps=2)


def test_accumulated_updates_count_with_the_next():
    theirs, ours = pair(VectorQuantize, BASE)
    for accumulate in (True, True, False):
        x = torch.randn(TOKENS)
        for module in (theirs, ours):
            module(x, accum_ema_update=accumulate)
        torch.testing.assert_close(ours._codebook.embed, theirs._codebook.embed)
    torch.testing.assert_close(ours._codebook.cluster_size, theirs._codebook.cluster_size)


def test_manual_update_and_expiry_by_their_names():
    options = {"manual_ema_update": True, "threshold_ema_dead_code": 1}
    theirs, ours = pair(VectorQuantize, BASE | options)
    x = torch.randn(TOKENS)
    for module in (theirs, ours):
        torch.manual_seed(1)
        module(x)
        module._codebook.update_ema()
        module.expire_codes_(x)
        module.update_indices(x, torch.arange(24).view(2, 12) % 16)
    for key, right in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], right)


@pytest.mark.parametrize("options", [{}, SEPARATE_HEADS, {"codebook_dim": 3}], ids=name)
def test_decoding_of_indices(options):
    theirs, ours = pair(VectorQuantize, BASE | options)
    indices = ours.eval()(torch.randn(TOKENS))[1]
    for method in ("get_codes_from_indices", "get_output_from_indices"):
        torch.testing.assert_close(getattr(ours, method)(indices), getattr(theirs, method)(indices))
    torch.testing.assert_close(ours.codebook, theirs.codebook)


@pytest.mark.parametrize(
    "options",
    [{}, {"straight_through": True, "rotation_trick": False, "ema_update": False}],
    ids=name,
)
def test_codes_learn_from_the_result_where_vectors_have_no_gradient(options):
    """With a loss on the codes they are a parameter, and a frozen encoder has no gradient."""
    modules = pair(VectorQuantize, BASE | {"orthogonal_reg_weight": 0.5} | options)
    x, gradients = torch.randn(TOKENS), []
    for module in modules:
        quantized, _, _ = module(x)
        gradients.append(torch.autograd.grad(quantized.square().sum(), module._codebook.embed)[0])
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)
