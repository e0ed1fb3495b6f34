"""What VectorQuantize refuses, with what was expected and what was given."""

import pytest
import torch
from vector_quantizers import GRADIENT, MASK, frozen, quantizer


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"codebook_size": 0}, "codebook_size must be at least 1"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"commitment_weight": -1.0}, "commitment_weight must not be negative"),
        ({"sync_update_v": 2.0, **GRADIENT}, "sync_update_v must be in"),
        ({"sync_update_v": 0.5}, "sync_update_v > 0 needs learnable_codebook"),
        ({"learnable_codebook": True, "ema_update": True}, "ema_update and learnable_codebook"),
        ({"rotation_trick": True, "directional_reparam": True}, "exclude each other"),
        ({"directional_reparam": True}, "needs threshold_ema_dead_code > 0"),
        ({"straight_through": True, **GRADIENT}, "straight_through"),
        ({"vq_bridge": torch.nn.Identity(), "learnable_codebook": False}, "vq_bridge needs"),
        ({"in_place_codebook_optimizer": torch.optim.SGD}, "nothing to optimize"),
        ({"affine_param": True, "use_cosine_sim": True}, "affine_param and use_cosine_sim"),
        ({"accept_image_fmap": True, "accept_3d_fmap": True}, "exclude each other"),
        (
            {
                "heads": 2,
                "separate_codebook_per_head": True,
                "orthogonal_reg_weight": 1.0,
                "orthogonal_reg_active_codes_only": True,
            },
            "needs one book for all heads",
        ),
    ],
)
def test_arguments_that_cannot_work(options, what):
    with pytest.raises(ValueError, match=what):
        quantizer(**options)


@pytest.mark.parametrize(
    ("options", "shape", "call", "what"),
    [
        ({}, (2, 12, 7), {}, r"x must be \[B, ..., D=8\] or \[B, D=8\], got \[2, 12, 7\]"),
        ({"channel_last": False}, (2, 7, 12), {}, r"x must be \[B, D=8, ...\]"),
        ({"accept_image_fmap": True}, (2, 8), {}, r"x must be \[B, D=8, height, width\]"),
        ({}, (2, 12, 8), {"mask": MASK, "lens": torch.tensor([1, 2])}, "exclude each other"),
        ({}, (2, 12, 8), {"mask": MASK[:, :3]}, r"mask must be bool \[2, 12\]"),
        ({}, (2, 12, 8), {"mask": MASK.float()}, "mask must be bool"),
        ({}, (2, 12, 8), {"lens": torch.tensor([1])}, r"lens must be \[B=2\], got \[1\]"),
        ({}, (2, 12, 8), {"topk": 0}, "topk must be at least 1, got 0"),
        ({"heads": 2}, (2, 12, 8), {"topk": 2}, "topk does not go with heads > 1"),
        ({}, (2, 12, 8), {"ema_update_weight": torch.ones(3)}, r"EMA weight must be \[K=16\]"),
    ],
)
def test_calls_that_cannot_work(options, shape, call, what):
    module = quantizer(**options)
    before = frozen(module)
    with pytest.raises(ValueError, match=what):
        module(torch.randn(shape), **call)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), "nothing is lost on bad input"


@pytest.mark.parametrize(
    ("indices", "what"),
    [
        (torch.zeros(2, 5, dtype=torch.int64), r"indices must be int64 \[2, 12\]"),
        (torch.zeros(2, 12), r"got torch\.float32"),
        (torch.full((2, 12), 16), "from -1 to K - 1 = 15"),
        (torch.tensor(3), r"indices must be \[B, ...\], got \[\]"),
    ],
)
def test_indices_that_cannot_be_right(indices, what):
    module = quantizer()
    before = frozen(module)
    with pytest.raises(ValueError, match=what):
        module(torch.randn(2, 12, 8), indices=indices)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "options",
    [
        {"dim": "8"},
        {"codebook_size": None},
        {"decay": None},
        {"heads": 1.5},
        {"kmeans_iters": 2.5},
        {"codebook_dim": "4"},
    ],
    ids=str,
)
def test_arguments_of_another_type(options):
    with pytest.raises(TypeError, match=r"must be an? (integer|number), got"):
        quantizer(**options)


@pytest.mark.parametrize("topk", [2.5, "3", float("nan"), torch.tensor([1, 2])], ids=str)
def test_topk_of_another_type(topk):
    with pytest.raises(TypeError, match="topk must be an integer, got"):
        quantizer().eval()(torch.randn(2, 12, 8), topk=topk)
