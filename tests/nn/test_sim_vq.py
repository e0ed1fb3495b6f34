"""SimVQ and ResidualSimVQ beside the peer's."""

import pytest
import torch
from beside_the_peer import check, name, pair

import vqvae_fast
from vqvae_fast.nn.drop_in.residual_sim_vq import ResidualSimVQ
from vqvae_fast.nn.drop_in.sim_vq import SimVQ

BASE = {"dim": 8, "codebook_size": 16}
STAGES = BASE | {"num_quantizers": 3}


def doubled(codes):
    return codes * 2


OPTIONS = [
    {},
    {"rotation_trick": False},
    {"frozen_codebook_dim": 5},
    {"codebook_transform": torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Linear(9, 8))},
    {"init_fn": doubled},
    {"input_to_quantize_commit_loss_weight": 0.6, "commitment_weight": 0.3},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 12, 8), (2, 3, 4, 8), (5, 8)])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_simvq(options, shape, training):
    check(SimVQ, BASE | options, shape, {}, training, steps=2)


@pytest.mark.parametrize("shape", [(2, 8, 12), (2, 8, 3, 4)])
def test_channel_first(shape):
    check(SimVQ, BASE | {"channel_first": True}, shape, {})
    check(ResidualSimVQ, STAGES | {"channel_first": True}, shape, {"return_all_codes": True})


@pytest.mark.parametrize(
    "options",
    [
        *OPTIONS,
        {"quantize_dropout": True},
        {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
        {"quantize_dropout": True, "quantize_dropout_multiple_of": 2},
    ],
    ids=name,
)
@pytest.mark.parametrize("training", [True, False])
def test_stages(options, training):
    check(ResidualSimVQ, STAGES | options, (2, 12, 8), {"return_all_codes": True}, training)


def test_decoding():
    theirs, ours = pair(SimVQ, BASE | {"channel_first": True})
    indices = torch.randint(16, (2, 3, 4))
    torch.testing.assert_close(ours.indices_to_codes(indices), theirs.indices_to_codes(indices))
    theirs, ours = pair(ResidualSimVQ, STAGES | {"quantize_dropout": True})
    indices = torch.randint(-1, 16, (2, 12, 3))
    for chosen in (indices, indices[..., :2]):
        for method in ("get_codes_from_indices", "get_output_from_indices"):
            expected = getattr(theirs, method)(chosen)
            torch.testing.assert_close(getattr(ours, method)(chosen), expected)
    torch.testing.assert_close(ours.codebooks, theirs.codebooks)


def test_a_bfloat16_model_searches_exactly():
    module = SimVQ(8, 64).bfloat16()
    x = torch.randn(2, 12, 8).bfloat16().requires_grad_()
    quantized, indices, loss = module(x)
    wanted = vqvae_fast.nearest_code(x.float(), module.codebook.float()).indices
    assert torch.equal(indices, wanted)
    assert quantized.dtype == torch.bfloat16
    loss.backward()
    assert module.code_transform.weight.grad.any()


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_autocast_changes_nothing(rotation_trick):
    """The peer rounds its codes to bfloat16, and what they decode to later is something else."""
    module = ResidualSimVQ(**STAGES, rotation_trick=rotation_trick)
    x = torch.randn(2, 12, 8)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
        assert module.codebooks.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(module.get_output_from_indices(got[1]), got[0])


def test_frozen_codes_can_be_replaced_and_loaded():
    first, second = SimVQ(8, 16), SimVQ(8, 16)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(second(x), first(x))
    assert set(first.state_dict()) == {"frozen_codebook", "code_transform.weight"}


@pytest.mark.parametrize("channel_first", [True, False])
def test_an_empty_batch(channel_first):
    module = ResidualSimVQ(**STAGES, channel_first=channel_first)
    x = torch.randn(2, 8, 0) if channel_first else torch.randn(2, 0, 8)
    quantized, indices, losses = module(x)
    assert quantized.shape == x.shape
    assert indices.shape == (2, 0, 3)
    assert not losses.any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (5, 8)])
def test_dropout_in_any_shape(shape):
    """The peer cannot stack its indices of four dimensions."""
    module = ResidualSimVQ(**STAGES, quantize_dropout=True)
    quantized, indices, losses = module(torch.randn(shape), rand_quantize_dropout_fixed_seed=0)
    assert quantized.shape == shape
    assert indices.shape == (*shape[:-1], 3)
    dropped = (indices == -1).flatten(0, -2).all(dim=0)
    assert dropped.any()
    assert torch.equal(losses == 0, dropped)


def test_dropout_out_of_range():
    with pytest.raises(ValueError, match=r"must be in \[0, num_quantizers=3\), got 3"):
        ResidualSimVQ(**STAGES, quantize_dropout=True, quantize_dropout_cutoff_index=3)
    with pytest.raises(ValueError, match="at most Q=3"):
        ResidualSimVQ(**STAGES).get_codes_from_indices(torch.zeros(2, 5, 4).long())


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    torch.compiler.reset()
    module = ResidualSimVQ(**STAGES).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(compiled(x), module(x))


def test_what_cannot_work():
    with pytest.raises(ValueError, match="codebook_size must be at least 1"):
        SimVQ(8, 0)
    with pytest.raises(ValueError, match="frozen_codebook_dim must be at least 1, got 0"):
        SimVQ(8, 4, frozen_codebook_dim=0)
    with pytest.raises(TypeError, match=r"^codebook_size must be an integer, got 4\.0$"):
        SimVQ(8, 4.0)
    with pytest.raises(ValueError, match=r"^num_quantizers must be at least 1, got 0$"):
        ResidualSimVQ(**STAGES | {"num_quantizers": 0})
    with pytest.raises(ValueError, match=r"init_fn must give \[K=4, F=8\], got \[3, 8\]"):
        SimVQ(8, 4, init_fn=lambda codes: codes[:3])
    with pytest.raises(ValueError, match=r"codebook must be \[K, D=8\]"):
        SimVQ(8, 4, codebook_transform=torch.nn.Linear(8, 7))(torch.randn(2, 8))
    with pytest.raises(ValueError, match="heads must be 1"):
        ResidualSimVQ(**STAGES, heads=2)
    with pytest.raises(ValueError, match=r"x must be \[B, ..., D=8\]"):
        SimVQ(8, 4)(torch.randn(2, 7))
