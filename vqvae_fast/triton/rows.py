"""How the kernels read a [..., D] tensor of any strides as rows."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """A [..., D] tensor as rows.

    Row n lies at ``(n // inner) * outer_stride + (n % inner) * inner_stride``. Two levels are what
    it takes to read [B, D, H, W] feature maps in place. Strides are counted in elements.
    """

    tensor: Tensor
    num_rows: int
    inner: int
    outer_stride: int
    inner_stride: int
    element_stride: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a kernel takes: the pointer, then inner and the three strides."""
        return (self.tensor, *self[2:])


def as_rows(t: Tensor) -> Rows:
    """t: [..., D] as rows of D. The rare layout that has more than two levels is copied."""
    levels = _levels(t)
    if len(levels) > 2:
        t = t.contiguous()
        levels = _levels(t)
    (outer, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(levels)) + levels
    return Rows(t, outer * inner, max(inner, 1), outer_stride, inner_stride, t.stride(-1))


def _levels(t: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the leading dimensions, those that lie end to end made one."""
    levels: list[tuple[int, int]] = []
    for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    return levels


@triton.jit
def row_offsets(rows, inner, outer_stride, inner_stride):
    """Offsets, int64, of ``rows`` in a tensor that lies as a ``Rows`` says."""
    rows = rows.to(tl.int64)
    return (rows // inner) * outer_stride + (rows % inner) * inner_stride
