"""Triton's interpreter computes in its quick form what it computes as it is."""

from contextlib import nullcontext

import pytest

pytest.importorskip("triton")

import torch
from quick_interpreter import quick_interpreter
from triton import language as tl
from triton.runtime import interpreter

SHAPES = [[4], [1, 16], [16, 1], [tl.constexpr(8), 2]]
OTHER = (tl.float16, [16, 1])


def described(element, shape):
    """All that a type and a tensor of it say of themselves."""
    block = tl.block_type(element, shape)
    value = tl.tensor(None, block)
    data = interpreter._get_np_dtype(block), interpreter._get_np_dtype(element)
    return (
        *(str(block), block.shape.values, block.numel, block.scalar is element),
        *(value.shape.values, value.shape.type, value.numel, value.type is block),
        *(value.dtype is element, tl.tensor(None, element).shape.values, data),
        *(block.shape == [1, 16], block.shape == [tl.constexpr(4)], block == tl.block_type(*OTHER)),
    )


def all_described():
    """Describes a new block type of every element type, pointers among them, in every shape."""
    elements = (tl.int1, tl.float16, tl.float32, tl.pointer_type(tl.float32))
    return [described(element, shape) for element in elements for shape in SHAPES]


def test_types_say_the_same():
    wanted = all_described()
    with quick_interpreter():
        assert all_described() == wanted
        assert all_described() == wanted  # of types that are known by now
    assert all_described() == wanted


def test_a_wrong_shape_is_still_refused():
    with quick_interpreter():
        for _ in range(2):
            with pytest.raises(ValueError, match="power of 2"):
                tl.block_type(tl.float32, [3])


def kernel(source, target, count, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = row * SIZE + column
    total = tl.load(source + place, mask=place < count, other=-1.0)
    for turn in range(2):
        halves = (total * 0.5 + turn).to(tl.float16)
        total = tl.dot(halves, halves, total) + tl.where(row < column, total, row)
        total = tl.expand_dims(total, 0) - tl.program_id(0)
        total = tl.reshape(tl.broadcast_to(total, (1, SIZE, SIZE)), (SIZE, SIZE))
    tl.store(target + place, total, mask=row != 3)


def test_a_kernel_returns_the_same_bits():
    source, targets = torch.randn(16, 16), torch.zeros(2, 16, 16)
    for context, target in zip((nullcontext(), quick_interpreter()), targets, strict=True):
        with context:
            interpreter.InterpretedFunction(kernel)[(1,)](source, target, 250, SIZE=16)
    assert targets[0].count_nonzero() > 200
    assert torch.equal(*targets)
