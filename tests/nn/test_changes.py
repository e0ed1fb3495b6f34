"""Whether tensors have changed: the extension sees what Python sees."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vqvae_fast import _native
from vqvae_fast.nn.codebook.changes import Description, describe, describe_in_python

FORMS = [describe, describe_in_python]


def write(tensors: list[Tensor]) -> None:
    tensors[1][0] += 1


def replace(tensors: list[Tensor]) -> None:
    tensors[0] = tensors[0].clone()


def other_storage(tensors: list[Tensor]) -> None:
    tensors[0].data = tensors[0].data.clone()


def other_strides(tensors: list[Tensor]) -> None:
    tensors[0].data = tensors[0].data.t()


def other_shape(tensors: list[Tensor]) -> None:
    tensors[0].data = tensors[0].data.flatten()


def other_dtype(tensors: list[Tensor]) -> None:
    tensors[0].data = tensors[0].data.view(torch.int32)


def another(tensors: list[Tensor]) -> None:
    tensors.append(tensors[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "change", [write, replace, other_storage, other_strides, other_shape, other_dtype, another]
)
def test_every_change_is_seen(form: Callable, change: Callable) -> None:
    tensors = [torch.randn(3, 3), torch.randn(5)]
    kept = list(tensors)  # so that no memory is used again
    before = form(tensors)
    assert form(tensors) == before
    change(tensors)
    assert form(tensors).seen != before.seen
    assert len(kept) == 2


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_one_storage_are_told_apart(form: Callable) -> None:
    tensor = torch.zeros(3)
    tensor += 1
    before = form([tensor])
    other = tensor.data  # has the memory, but counts its own writes
    other += 1
    assert (other.data_ptr(), other._version) == (tensor.data_ptr(), tensor._version)
    assert form([other]).seen != before.seen


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_seen(form: Callable) -> None:
    constant, learned = torch.randn(3), nn.Parameter(torch.randn(3))
    assert form([constant])[1:] == (False, False)
    assert form([constant, learned])[1:] == (True, False)
    (learned * 2).sum().backward()
    assert form([learned])[1:] == (True, True)
    assert form([learned * 2])[1:] == (True, False)  # no leaf has the gradient


@pytest.mark.parametrize("form", FORMS)
def test_tensors_whose_changes_cannot_be_seen(form: Callable) -> None:
    ordinary = torch.randn(3)
    with torch.inference_mode():
        of_inference = torch.randn(3)
    assert form([ordinary, of_inference]) is None
    assert form([ordinary, torch.randn(3, device="meta")]) is None
    with FakeTensorMode():
        assert form([torch.randn(3)]) is None
    seen: list[Description | None] = []
    torch.vmap(lambda t: seen.append(form([ordinary, t])) or t)(torch.randn(2, 3))
    torch.func.grad(lambda t: seen.append(form([t])) or t.sum())(torch.randn(3))
    assert seen == [None, None]


class Watched(Tensor):
    """A tensor of which every use is recorded."""

    uses: list[object] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.uses.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("form", FORMS)
def test_a_subclass_is_described_without_its_own_code(form: Callable) -> None:
    tensors = [torch.randn(3), torch.randn(3).as_subclass(Watched)]
    Watched.uses.clear()
    before = form(tensors)
    assert before is not None
    assert not Watched.uses
    tensors[1] += 1
    assert form(tensors).seen != before.seen


@pytest.mark.skipif(_native.extension is None, reason="the C++ extension is not there")
def test_the_extension_describes_ordinary_tensors() -> None:
    parameter = nn.Parameter(torch.randn(3, 4))
    assert _native.extension.description([parameter, parameter.t(), torch.tensor(1)]) is not None
    assert _native.extension.description([torch.randn(3, device="meta")]) is None


class AnswersNothing(TorchFunctionMode):
    """A mode in which no attribute of a tensor has a value."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return None


@pytest.mark.skipif(_native.extension is None, reason="the C++ extension is not there")
def test_the_extension_describes_no_tensor_whose_version_is_no_number() -> None:
    tensor = torch.randn(3)
    with AnswersNothing():
        assert _native.extension.description([tensor]) is None
