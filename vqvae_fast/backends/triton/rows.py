"""How the kernels read a [..., D] tensor of any strides as rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad


class Rows(NamedTuple):
    """A [..., D] tensor as rows.

    Row n lies at ``(n // inner) * outer_stride + (n % inner) * inner_stride``. Two levels are what
    it takes to read [B, D, H, W] feature maps in place. Strides are counted in elements.
    """

    tensor: Any  # or, in a plan, its Pointer
    num_rows: int
    inner: int
    outer_stride: int
    inner_stride: int
    element_stride: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a kernel takes: the pointer, then inner and the three strides."""
        return (self.tensor, *self[2:])


class Books(NamedTuple):
    """Codebooks [H, K, D] at a pointer, with the strides that kernels take."""

    start: Any
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]


def books_at(start: Any, shape: Sequence[int], strides: Sequence[int]) -> Books:
    """[K, D], or [H, K, D], as books."""
    heads = (1, 0) if len(shape) == 2 else (shape[0], head_stride(shape, strides))
    return Books(start, (heads[0], shape[-2], shape[-1]), (heads[1], strides[-2], strides[-1]))


def as_rows(t: Tensor) -> Rows:
    """t: [..., D] as rows of D. The rare layout that has more than two levels is copied."""
    if not are_rows(t.shape, t.stride()):
        t = t.contiguous()
    return rows_at(t, t.shape, t.stride())


def are_rows(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a [..., D] tensor that lies in this way can be read as rows in place."""
    return len(_levels(shape, strides)) <= 2


def rows_at(start: Any, shape: Sequence[int], strides: Sequence[int]) -> Rows:
    """The rows of a [..., D] tensor at `start`, a tensor or a pointer, that lie as rows."""
    levels = _levels(shape, strides)
    (outer, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(levels)) + levels
    return Rows(start, outer * inner, max(inner, 1), outer_stride, inner_stride, strides[-1])


def end_to_end(t: Tensor, columns: int) -> Tensor:
    """t: [..., D] as rows of ``columns`` elements without gaps, zeros behind D; t if it is so.

    It serves kernels that have too few registers for strides and masks.
    """
    missing = columns - t.shape[-1]
    return (pad(t, (0, missing)) if missing else t).contiguous()


# Triton compiles a kernel once for integers that are multiples of 16 and once for others, and does
# the same for pointers, in bytes. Shapes must not cause this, so strides are not specialised.
# Whether rows can be read several elements at a time is a constant that depends on the layout
# alone: the number of elements of which all strides are a multiple. Even 8 of two bytes are one
# wide load.
_VECTORS = (16, 8)


def alignment(vector: int, dim: int, *tensors: Rows | int) -> int:
    """``vector`` if all rows, and all of further strides, are multiples of it apart, else 1."""
    strides = [dim]
    for t in tensors:
        strides += [t] if isinstance(t, int) else [t.outer_stride, t.inner_stride]
    return vector if all(stride % vector == 0 for stride in strides) else 1


def widest_alignment(dim: int, *tensors: Rows | int) -> int:
    """16 or 8 elements if ``alignment`` allows it, the larger first, else 1."""
    return max(alignment(vector, dim, *tensors) for vector in _VECTORS)


def padded(count: int) -> int:
    """A size for tensors of 4 bytes and more that lie end to end, each aligned to 16 bytes."""
    return (count + 3) // 4 * 4


def head_stride(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The stride from one book of [H, ...] to the next; 0 if there is only one."""
    return strides[0] if shape[0] > 1 else 0


def _levels(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(size, stride) of the leading dimensions, those that lie end to end made one."""
    levels: list[tuple[int, int]] = []
    for size, stride in zip(shape[:-1], strides[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    return levels


@triton.jit
def aligned(stride, ALIGNED: tl.constexpr):
    """The stride, which is a multiple of ALIGNED, so that the compiler knows."""
    return stride // ALIGNED * ALIGNED


@triton.jit
def row_offsets(rows, inner, outer_stride, inner_stride, ALIGNED: tl.constexpr):
    """Offsets, int64, of ``rows`` in a tensor that lies as a ``Rows`` says.

    The division is done in the type of ``rows``: in 64 bits it takes five times as many
    instructions.
    """
    outer, inner = (rows // inner).to(tl.int64), (rows % inner).to(tl.int64)
    return outer * aligned(outer_stride, ALIGNED) + inner * aligned(inner_stride, ALIGNED)
