"""compare(): the model's own codes beside the nearest ones, judged in float64."""

import pytest
import torch
from torch import Tensor, nn

from vqvae_fast import accelerate, compare, nearest_code
from vqvae_fast.acceleration import Recipe, Search, comparison, nearest, register
from vqvae_fast.acceleration.known import KNOWN

K, D = 256, 4


class Narrow(nn.Module):
    """A quantizer that searches in bfloat16, and so misses."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(K, D))

    def find(self, x: Tensor) -> Tensor:
        return torch.cdist(x.bfloat16().float(), self.codes.bfloat16().float()).argmin(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.codes[self.find(x)]


class Model(nn.Module):
    """Two quantizers, in training."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.first, self.second = Narrow(), Narrow()

    def encode(self, x: Tensor, twice: bool = False) -> Tensor:
        x = self.drop(x)
        return self.first(x) + self.second(x) + (self.second(x) if twice else 0)

    def forward(self, x: Tensor) -> Tensor:
        return x


def _find(original, module, x):
    return nearest(module, x, module.codes)


@pytest.fixture(autouse=True)
def recipe():
    before = list(KNOWN)
    register(
        Recipe(
            f"{__name__}.Narrow",
            {"find": _find},
            observed=("find", lambda module, indices, x: Search(x, module.codes, indices)),
        )
    )
    yield
    KNOWN[:] = before


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def test_it_counts_the_misses_of_each_quantizer(model):
    x = torch.randn(2000, D)
    found = compare(model, (x, True), method="encode")
    assert [entry.name for entry in found] == ["first", "second"]
    assert [entry.vectors for entry in found] == [2000, 4000]
    for entry, quantizer in zip(found, (model.first, model.second), strict=True):
        exact = (x[:, None].double() - quantizer.codes.double()).square().sum(dim=-1)
        exact = exact.detach()
        theirs = exact.gather(1, quantizer.find(x)[:, None])[:, 0]
        farther = theirs > exact.amin(dim=-1)
        calls = entry.vectors // 2000
        assert entry.differ == entry.ours_nearer == calls * int(farther.sum()) > 0
        assert entry.theirs_nearer == 0
        worst = ((theirs - exact.amin(dim=-1)) / exact.amin(dim=-1)).max()
        assert entry.excess == pytest.approx(float(worst))


def test_the_model_is_as_before(model):
    model.second.eval()
    compare(model, {"x": torch.randn(3, D), "twice": True}, method="encode")
    assert model.training
    assert model.first.training
    assert not model.second.training
    assert type(model.first) is Narrow


def test_the_model_is_as_before_after_an_error(model):
    with pytest.raises(RuntimeError):
        compare(model, torch.randn(3, D + 1), method="encode")
    assert model.training
    assert type(model.first) is Narrow


def test_an_accelerated_model_is_compared_by_its_own_search(model):
    x = torch.randn(500, D)
    expected = compare(model, x, method="encode")
    accelerate(model, quiet=True)
    cls = type(model.first)
    assert compare(model, x, method="encode") == expected
    assert type(model.first) is cls


def test_of_equally_near_codes_none_is_nearer():
    codes = torch.randn(K, D).repeat_interleave(2, dim=0)
    z = torch.randn(100, D)
    second = nearest_code(z, codes).indices + 1
    counts = comparison._counts(Search(z, codes, second))
    assert counts == (100, 100, 0, 0, 0.0)


class Doubled(Narrow):
    """What its search is given is not what it compares with the codes."""

    def find(self, x: Tensor) -> Tensor:
        return super().find(2 * x)


def test_a_search_of_its_own_is_not_judged(model):
    model.second = Doubled()
    found = compare(model, torch.randn(3, D), method="encode")
    assert [entry.name for entry in found] == ["first"]


def test_vectors_with_nan_or_infinities_have_no_excess():
    codes, z = torch.randn(K, D), torch.randn(5, D)
    z[1, 2], z[3, 0] = torch.nan, torch.inf
    nearest = nearest_code(z, codes).indices
    others = (nearest + 1) % K
    counts = comparison._counts(Search(z, codes, others))
    keep = [0, 2, 4]
    assert counts == (5, 5, 3, 0, comparison._counts(Search(z[keep], codes, others[keep])).excess)
    only = comparison._counts(Search(z[1:2], codes, others[1:2]))
    assert only == (1, 1, 0, 0, 0.0)


def test_the_table(model):
    lines = str(compare(model, torch.randn(3, D), method="encode")).splitlines()
    assert lines[0].split()[:5] == ["quantizer", "vectors", "differ", "ours", "nearer"]
    assert lines[1].startswith("first (Narrow) ")
    assert len({len(line) for line in lines}) == 1


def test_a_call_without_a_search_is_an_error(model):
    with pytest.raises(
        ValueError, match=r"no quantizer with a recipe has searched in Model\.forward"
    ):
        compare(model, torch.randn(3, D))
