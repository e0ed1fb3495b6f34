"""GroupedResidualVQ: random numbers like the peer's, and layouts that the peer cannot take."""

import pytest
import torch
from beside_the_peer import check, name, pair

from vqvae_fast.nn.drop_in.grouped_residual_vq import GroupedResidualVQ

BASE = {"dim": 16, "codebook_size": 16, "num_quantizers": 3, "groups": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"stochastic_sample_codes": True, "sample_codebook_temp": 0.3},
        {"stochastic_sample_codes": True, "quantize_dropout": True},
        {"kmeans_init": True, "rotation_trick": False},
    ],
    ids=name,
)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_drawn(options, training):
    """The peer draws a seed in training whether or not it needs one."""
    if "kmeans_init" in options and not training:
        options = {}  # in eval only the peer would initialise
    # Far more vectors than codes: else what is left is zero, and the peer's choice rounding.
    check(GroupedResidualVQ, BASE | options, (4, 100, 16), {}, training, steps=2)


@pytest.mark.parametrize("beam_size", [None, 2])
def test_cut_dimensions_are_quantized_by_themselves(beam_size):
    module = GroupedResidualVQ(**BASE, beam_size=beam_size).eval()
    x = torch.randn(2, 12, 16)
    quantized, indices, losses, codes = module(x, return_all_codes=True)
    assert losses.shape == (2, 3)
    for group, (part, rvq) in enumerate(zip(x.chunk(2, dim=-1), module.rvqs, strict=True)):
        expected = rvq(part, return_all_codes=True)
        torch.testing.assert_close(quantized.chunk(2, dim=-1)[group], expected[0])
        assert torch.equal(indices[group], expected[1])
        torch.testing.assert_close(codes[group], expected[3])


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"accept_image_fmap": True}, (2, 16, 5, 3)),
        ({"accept_image_fmap": True, "codebook_dim": 4}, (2, 16, 5, 3)),
        ({"accept_3d_fmap": True}, (2, 16, 2, 3, 4)),
        ({"channel_last": False}, (2, 16, 5)),
        ({}, (5, 16)),
        ({}, (2, 3, 4, 16)),
        ({"codebook_size": (16, 8), "num_quantizers": None}, (2, 5, 16)),
        ({"project_per_stage": True, "codebook_dim": 2}, (2, 5, 16)),
    ],
    ids=name,
)
def test_every_layout_decodes_to_what_forward_gave(options, shape):
    module = GroupedResidualVQ(**BASE | options)
    module(torch.randn(shape))
    quantized, indices, _ = module.eval()(torch.randn(shape))
    assert quantized.shape == shape
    assert len(indices) == 2
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


def test_books_of_different_sizes():
    """The peer cannot stack them."""
    module = GroupedResidualVQ(dim=16, codebook_size=(16, 8), groups=2)
    assert [[len(book) for book in books] for books in module.codebooks] == [[16, 8], [16, 8]]


def test_state_has_the_peers_names():
    theirs, ours = pair(GroupedResidualVQ, BASE | {"codebook_dim": 4})
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_right_codes_of_all_groups():
    module = GroupedResidualVQ(**BASE).eval()
    x = torch.randn(2, 12, 16)
    indices = module(x)[1]
    quantized, loss = module(x, indices=indices)
    parts = zip(module.rvqs, x.chunk(2, dim=-1), indices, strict=True)
    torch.testing.assert_close(loss, sum(rvq(part, indices=i)[1] for rvq, part, i in parts))
    torch.testing.assert_close(quantized, module(x)[0])


def test_compiled_steps_are_the_eager_ones():
    torch.compiler.reset()
    module = GroupedResidualVQ(**BASE)
    other = GroupedResidualVQ(**BASE)
    other.load_state_dict(module.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        x = torch.randn(2, 12, 16)
        expected, got = module.train(training)(x), (other.train(training), compiled(x))[1]
        torch.testing.assert_close(got, expected)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


def test_what_cannot_work():
    with pytest.raises(ValueError, match="dim must be a multiple of groups=3, got 16"):
        GroupedResidualVQ(**BASE | {"groups": 3})
    with pytest.raises(ValueError, match="dim must be a multiple of groups=0, got 16"):
        GroupedResidualVQ(**BASE | {"groups": 0})
    with pytest.raises(ValueError, match=r"x must be \[B, D=16, height, width\]"):
        GroupedResidualVQ(**BASE, accept_image_fmap=True)(torch.randn(2, 5, 3, 16))
    with pytest.raises(ValueError, match="indices must be of 2 groups, got 1"):
        GroupedResidualVQ(**BASE).get_output_from_indices(torch.zeros(1, 2, 3, 3).long())
