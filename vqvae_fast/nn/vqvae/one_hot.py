"""The one-hot matrix of the reference VQ-VAE, built only when somebody looks at it."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = ("neg", "pos", "abs", "invert")


class LazyOneHot:
    """Stands for the one-hot rows [N, K] of N indices; holds the indices only.

    It behaves as the tensor: attributes and methods, indexing, operators, torch functions and
    ``numpy.asarray`` all work on the dense matrix, which is built at the first such use and kept
    from then on. ``shape``, ``dtype``, ``device``, ``size()``, ``dim()`` and ``len()`` build
    nothing. It is not an instance of ``torch.Tensor``: where that matters, call :meth:`dense`.

    Args:
        indices: [N] int64, each in [0, ``num_codes``).
        num_codes: K, the number of codes.
        dtype: dtype of the dense matrix.
    """

    def __init__(self, indices: Tensor, num_codes: int, dtype: torch.dtype = torch.float32):
        self.indices = indices
        self.num_codes = num_codes
        self.dtype = dtype
        self.materialized: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""
        return torch.Size((self.indices.shape[0], self.num_codes))

    @property
    def device(self) -> torch.device:
        """Where the dense matrix will be."""
        return self.indices.device

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As ``Tensor.size``."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As ``Tensor.dim``: 2."""
        return 2

    def dense(self) -> Tensor:
        """The matrix itself, [N, K], without gradient."""
        if self.materialized is None:
            rows = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            self.materialized = rows.scatter_(1, self.indices[:, None], 1)
        return self.materialized

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let torch functions see the dense matrix."""
        named = {key: _densify(value) for key, value in (kwargs or {}).items()}
        return func(*_densify(args), **named)

    def __getattr__(self, name: str) -> Any:
        # Special names stay unknown: copy and pickle ask for them before there are indices.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.dense()[index] = _densify(value)

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.dense())

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.dense().cpu().__array__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"LazyOneHot(shape={list(self.shape)}, dtype={self.dtype}, device={self.device})"

    __hash__ = object.__hash__


def _densify(value: Any) -> Any:
    """The dense matrix in the place of every LazyOneHot in nested arguments."""
    if isinstance(value, LazyOneHot):
        return value.dense()
    if type(value) in (list, tuple):
        return type(value)(_densify(item) for item in value)
    return value


# Python looks special methods up on the class, where __getattr__ does not reach.
def _forwarding(apply: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def method(self: LazyOneHot, *others: Any) -> Any:
        operands = (self.dense(), *(_densify(other) for other in others))
        return apply(*reversed(operands)) if reflected else apply(*operands)

    return method


for _name in _BINARY + _COMPARE + _UNARY:
    _apply = getattr(operator, f"__{_name}__")
    setattr(LazyOneHot, f"__{_name}__", _forwarding(_apply))
    if _name in _BINARY:
        setattr(LazyOneHot, f"__r{_name}__", _forwarding(_apply, reflected=True))


# torch.export takes apart what a module returns; the indices are the one tensor in here. Its files
# are JSON, which knows numbers and names, but no dtype.
register_pytree_node(
    LazyOneHot,
    lambda lazy: ([lazy.indices], (lazy.num_codes, lazy.dtype)),
    lambda leaves, context: LazyOneHot(*leaves, *context),
    serialized_type_name="vqvae_fast.nn.LazyOneHot",
    to_dumpable_context=lambda context: [context[0], str(context[1]).removeprefix("torch.")],
    from_dumpable_context=lambda dumped: (dumped[0], getattr(torch, dumped[1])),
)
