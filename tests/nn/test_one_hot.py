import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae_fast.nn import LazyOneHot, VectorQuantizer

INDICES = torch.tensor([2, 0, 2, 4])
DENSE = functional.one_hot(INDICES, 5).float()


@pytest.fixture
def lazy() -> LazyOneHot:
    return LazyOneHot(INDICES, 5)


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_unread_it_is_not_built():
    quantizer = VectorQuantizer(300, 2)
    z = torch.randn(1, 2, 10, 10)
    with LargestTensor() as seen:
        loss, z_q, _, encodings, indices = quantizer(z)
        (loss + z_q.sum()).backward()
        assert encodings.shape == (100, 300)
        assert encodings.size() == (100, 300)
        assert encodings.size(1) == 300
        assert (encodings.dim(), len(encodings)) == (2, 100)
        assert encodings.dtype == torch.float32
        assert encodings.device == z.device
        assert "LazyOneHot" in repr(encodings)
    assert encodings.materialized is None
    assert seen.elements == 300 * 2, "the largest is the codebook's gradient"
    with LargestTensor() as seen:
        encodings.sum()
    assert seen.elements == 100 * 300, "the mode sees a dense one-hot"
    assert torch.equal(encodings.dense(), functional.one_hot(indices[:, 0], 300).float())


def test_read_it_is_the_reference_one_hot(lazy):
    dense = lazy.dense()
    assert torch.equal(dense, DENSE)
    assert dense.dtype == torch.float32
    assert lazy.dense() is dense


def test_elements_can_be_set(lazy):
    lazy[0] = 2.0
    lazy[1, 3] = torch.tensor(5.0)
    assert lazy.dense()[0].tolist() == [2.0] * 5
    assert lazy[1, 3] == 5.0


@pytest.mark.parametrize(
    "use",
    [
        lambda e: e.sum(0),
        lambda e: e.mean(dim=0),
        lambda e: e.t(),
        lambda e: e.T,
        lambda e: e.view(2, 2, 5),
        lambda e: e.to(torch.float64),
        lambda e: e[1],
        lambda e: e[:, 2:4],
        lambda e: e[torch.tensor([True, False, True, False])],
        lambda e: e @ torch.arange(10.0).view(5, 2),
        lambda e: torch.arange(8.0).view(2, 4) @ e,
        lambda e: torch.matmul(e, torch.arange(10.0).view(5, 2)),
        lambda e: torch.mean(e, dim=0),
        lambda e: torch.cat([e, e]),
        lambda e: torch.stack((e, e), dim=1),
        lambda e: functional.linear(input=e, weight=torch.ones(3, 5)),
        lambda e: torch.ones(4, 5) - e,
        lambda e: 1 - e,
        lambda e: e - 1,
        lambda e: 2**e,
        lambda e: e / e.sum(),
        lambda e: -e,
        lambda e: abs(e),
        lambda e: e == 1,
        lambda e: e > torch.full((4, 5), 0.5),
        lambda e: e.bool() & (e != 0),
        lambda e: torch.stack(list(e)),
        lambda e: torch.from_numpy(np.asarray(e)),
        lambda e: torch.from_numpy(e.numpy()),
        lambda e: torch.tensor(e.tolist()),
        lambda e: e.argmax(dim=1),
        lambda e: copy.deepcopy(e).dense(),
        lambda e: pickle.loads(pickle.dumps(e)).dense(),
    ],
)
def test_behaves_as_the_tensor(lazy, use):
    plain = copy.copy(DENSE)
    plain.dense = lambda: plain
    expected = use(DENSE) if not _is_copy(use) else DENSE
    assert torch.equal(use(lazy), expected)


def _is_copy(use) -> bool:
    return "dense" in use.__code__.co_names


def test_two_of_them(lazy):
    other = LazyOneHot(torch.tensor([2, 1, 2, 3]), 5)
    assert torch.equal(lazy * other, DENSE * other.dense())
    assert torch.equal(torch.add(lazy, other), DENSE + other.dense())


def test_unknown_names(lazy):
    with pytest.raises(AttributeError, match="no_such_method"):
        lazy.no_such_method()
    assert not hasattr(lazy, "__cuda_array_interface__")


def test_hash_and_truth(lazy):
    assert {lazy: 1}[lazy] == 1
    assert lazy


def test_no_rows():
    empty = LazyOneHot(torch.empty(0, dtype=torch.int64), 5)
    assert empty.shape == (0, 5)
    assert torch.equal(empty.sum(0), torch.zeros(5))


def test_dtype_is_the_codebooks():
    quantizer = VectorQuantizer(7, 2).double()
    encodings = quantizer(torch.randn(1, 2, 3, 3, dtype=torch.float64))[3]
    assert encodings.dtype == encodings.dense().dtype == torch.float64
