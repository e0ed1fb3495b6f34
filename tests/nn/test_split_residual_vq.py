"""What tests/checkpoints/test_audio.py, which compares it with Mimi, does not see."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import vqvae_fast
from vqvae_fast.nn import SplitResidualVQ

SIZES = {"dim": 6, "codebook_dim": 4, "codebook_size": 16, "num_quantizers": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_semantic_quantizers": 4}, "below num_quantizers=4, got 4"),
        ({"num_semantic_quantizers": 0}, "at least 1 and below num_quantizers=4, got 0"),
        ({"projections": False}, "codebook_dim must be dim=6, got 4"),
    ],
)
def test_numbers_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        SplitResidualVQ(**{**SIZES, **changes})


def test_stages_of_both():
    split = SplitResidualVQ(**SIZES, num_semantic_quantizers=2).eval()
    quantized, indices, _ = split(torch.randn(2, 6, 5))
    assert (quantized.shape, indices.shape) == ((2, 6, 5), (2, 5, 4))
    torch.testing.assert_close(split.get_output_from_indices(indices), quantized)
    with pytest.raises(ValueError, match=r"at most 4\], got \[2, 5, 5\]"):
        split.get_output_from_indices(torch.zeros(2, 5, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    "other",
    [
        torch.nn.Conv1d(4, 6, 1, bias=True),
        torch.nn.Conv1d(4, 6, 3, padding=1),
        torch.nn.Conv1d(4, 6, 1, groups=2),
    ],
    ids=["bias", "kernel", "groups"],
)
def test_another_convolution_does_what_it_says(other):
    split = SplitResidualVQ(**SIZES).eval()
    inner = split.rvq_first
    inner.output_proj = other
    x = torch.randn(2, 6, 5)
    quantized = inner.vq(inner.input_proj(x).transpose(1, 2))[0]
    torch.testing.assert_close(inner(x)[0], other(quantized.transpose(1, 2)))


def test_results_are_contiguous_and_errors_name_the_channels():
    split = SplitResidualVQ(**SIZES).eval()
    quantized, indices, _ = split(torch.randn(2, 6, 5))
    assert quantized.is_contiguous()
    assert split.get_output_from_indices(indices).is_contiguous()
    with pytest.raises(RuntimeError, match="to have 6 channels, but got 7"):
        split(torch.randn(2, 7, 5))


# Joined projections: freeze(compose_projections=True).

JOINED = {"dim": 24, "codebook_dim": 20, "codebook_size": 300, "num_quantizers": 5}


def with_codes(**options: object) -> SplitResidualVQ:
    torch.manual_seed(0)
    split = SplitResidualVQ(**JOINED, num_semantic_quantizers=2, **options).eval()
    for name, tensor in split.named_buffers():
        if name.endswith("embed"):
            tensor.normal_()
    return split


def joined(split: SplitResidualVQ) -> SplitResidualVQ:
    return copy.deepcopy(split).freeze(compose_projections=True)


@torch.no_grad()
def judge(split: SplitResidualVQ, x: Tensor) -> None:
    """Compare with the module as it was: outputs, and codes where float64 can tell them apart."""
    exact = copy.deepcopy(split).unfreeze().double()
    found = split(x)
    wanted = exact(x.double())
    assert [part.shape for part in found] == [part.shape for part in wanted]
    assert found[0].is_contiguous()
    distances = []
    for half, part in zip(
        (exact.rvq_first, exact.rvq_rest), found[1].split([2, 3], -1), strict=True
    ):
        residual = half.input_proj(x.double()).transpose(1, 2)
        for stage, chosen in zip(half.vq.layers, part.unbind(-1), strict=True):
            to_all = torch.cdist(
                residual, stage.codebook, compute_mode="donot_use_mm_for_euclid_dist"
            )
            own = to_all.gather(-1, chosen[..., None])[..., 0]
            distances.append(own / to_all.amin(-1) - 1)
            residual = residual - stage.codebook[chosen]
    assert torch.stack(distances).amax() <= 1e-5
    decoded = exact.get_output_from_indices(found[1])
    torch.testing.assert_close(found[0].double(), decoded, rtol=0, atol=1e-5 * decoded.abs().max())


def is_joined(split: SplitResidualVQ) -> bool:
    return any(kept.nbytes > 0 for kept in split.kept_forms())


@pytest.mark.parametrize("shape", [(1, 24, 1), (2, 24, 13), (3, 24, 0), (1, 24, 140)])
def test_joined_projections(shape: tuple[int, ...]) -> None:
    split = joined(with_codes())
    x = torch.randn(shape)
    if x.numel():
        judge(split, x)
    with torch.no_grad():
        assert split(x)[0].shape == shape
    assert is_joined(split)
    # Two maps of 24 channels to and from 2 x 20 dimensions, with columns up to a multiple of 16.
    maps = 4 * (24 * 48 + 48 + 40 * 32 + 32)
    assert split.packed_nbytes == maps + sum(
        half.vq.packed_nbytes for half in (split.rvq_first, split.rvq_rest)
    )


def test_joined_projections_have_the_biases_of_convolutions_that_have_them() -> None:
    split = with_codes()
    split.rvq_first.input_proj = nn.Conv1d(24, 20, 1)
    split.rvq_rest.output_proj = nn.Conv1d(20, 24, 1)
    split = joined(split)
    judge(split, torch.randn(2, 24, 13))
    assert is_joined(split)


@pytest.mark.parametrize("name", ["rvq_first.input_proj", "rvq_rest.output_proj"])
@pytest.mark.parametrize("change", ["in place", "another tensor", "load_state_dict", "to"])
def test_joined_projections_follow_changes(name: str, change: str) -> None:
    split, x = joined(with_codes()), torch.randn(2, 24, 13)
    judge(split, x)
    projection = split.get_submodule(name)
    with torch.no_grad():
        if change == "in place":
            projection.weight.mul_(-2)
        elif change == "another tensor":
            projection.weight = nn.Parameter(projection.weight * -2)
        elif change == "load_state_dict":
            state = {key: -2 * part for key, part in split.state_dict().items() if "proj" in key}
            split.load_state_dict(state, strict=False)
        else:
            split.to(torch.float64).to(torch.float32)
            projection.weight.mul_(-2)
    judge(split, x)
    assert is_joined(split)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda split: split.train(),
        lambda split: setattr(split.rvq_rest, "output_proj", nn.Conv1d(20, 24, 3, padding=1)),
        lambda split: setattr(split.rvq_first, "input_proj", nn.Identity()),
        lambda split: split.rvq_first.register_forward_hook(lambda *_: None),
        lambda split: split.rvq_rest.input_proj.register_forward_pre_hook(lambda *_: None),
        lambda split: split.rvq_first.train(),
        lambda split: split.unfreeze(),
        lambda split: split.double(),
    ],
    ids=["train", "kernel", "identity", "hook", "hook of a part", "half", "unfrozen", "double"],
)
def test_calls_for_which_the_projections_are_not_joined(prepare) -> None:
    split = joined(with_codes())
    x = torch.randn(2, 24, 13)
    with torch.no_grad():
        split(x)
        prepare(split)
        plain = copy.deepcopy(split).unfreeze()
        if isinstance(split.rvq_first.input_proj, nn.Identity):
            for one in (split, plain):
                with pytest.raises((ValueError, RuntimeError)):
                    one(x)
        else:
            x = x.to(split.rvq_first.input_proj.weight.dtype)
            torch.manual_seed(1)
            found = split(x)
            torch.manual_seed(1)
            for mine, wanted in zip(found, plain(x), strict=True):
                assert torch.equal(mine, wanted)


def test_halves_with_codes_of_two_lengths_are_not_joined() -> None:
    split = with_codes()
    split.rvq_rest = SplitResidualVQ(**{**JOINED, "codebook_dim": 8}).eval().rvq_rest
    x = torch.randn(2, 24, 13)
    with torch.no_grad():
        for mine, wanted in zip(joined(split)(x), split(x), strict=True):
            assert torch.equal(mine, wanted)


def test_gradients_autocast_and_wrong_channels_are_as_before() -> None:
    split = with_codes()
    x = torch.randn(2, 24, 13, requires_grad=True)
    found, wanted = joined(split)(x), split(x)
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))
    assert found[0].requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert joined(split)(x)[0].dtype == split(x)[0].dtype
    with torch.no_grad(), pytest.raises(RuntimeError, match="to have 24 channels, but got 25"):
        joined(split)(torch.randn(2, 25, 13))


def test_verify_sees_a_projection_that_was_written_behind_torch() -> None:
    split = with_codes().freeze(compose_projections=True, verify=True)
    x = torch.randn(2, 24, 13)
    judge(split, x)
    split.rvq_rest.input_proj.weight.detach().numpy()[0] += 1
    with torch.no_grad(), pytest.raises(RuntimeError, match="in a way that torch does not count"):
        split(x)


def test_copies_and_pickles_join_their_own() -> None:
    split, x = joined(with_codes()), torch.randn(2, 24, 13)
    with torch.no_grad():
        wanted = split(x)
        for other in (copy.deepcopy(split), pickle.loads(pickle.dumps(split))):
            assert not is_joined(other)
            assert all(map(torch.equal, other(x), wanted))
            assert is_joined(other)


def test_without_projections_nothing_is_joined() -> None:
    split = SplitResidualVQ(**{**SIZES, "dim": 4}, projections=False).eval()
    x = torch.randn(2, 4, 5)
    frozen = vqvae_fast.freeze(copy.deepcopy(split), compose_projections=True)
    with torch.no_grad():
        assert all(map(torch.equal, frozen(x), split(x)))
    assert not is_joined(frozen)
