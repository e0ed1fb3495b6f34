import re

import numpy as np
import pytest
import torch
from kernels import INSTRUCTION_SETS, REFUSED

import vqvae_fast

# The reference is plain PyTorch and reads nothing that torch does not check.
OF_KERNELS = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")

SEARCHES = pytest.mark.parametrize("function", [vqvae_fast.nearest_code, vqvae_fast.quantize])


@SEARCHES
@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        ((4, 64), (512, 32), "codebook must be [K, D=64] or [H, K, D=64], got [512, 32]"),
        ((4, 64), (64,), "codebook must be [K, D=64] or [H, K, D=64], got [64]"),
        ((4, 8), (1, 1, 5, 8), "codebook must be [K, D=8] or [H, K, D=8], got [1, 1, 5, 8]"),
        ((), (5, 8), "z must be [..., D], got a tensor without dimensions"),
        ((4, 8), (0, 8), "codebook must have at least one code and one dimension, got [0, 8]"),
        ((4, 0), (5, 0), "codebook must have at least one code and one dimension, got [5, 0]"),
        ((0, 8), (0, 8), "codebook must have at least one code and one dimension, got [0, 8]"),
        ((2, 4, 8), (3, 5, 8), "z must be [H=3, ..., D=8] for the books [3, 5, 8], got [2, 4, 8]"),
        ((8,), (3, 5, 8), "z must be [H=3, ..., D=8] for the books [3, 5, 8], got [8]"),
        ((0, 4, 8), (0, 5, 8), "codebook must have at least one code and one dimension, got [0,"),
    ],
)
def test_shapes(function, z, codebook, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(torch.zeros(z), torch.zeros(codebook))


@SEARCHES
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers(function, dtype):
    with pytest.raises(TypeError, match=rf"^z must be one of torch.float32, .*, got {dtype}$"):
        function(torch.zeros(4, 8, dtype=dtype), torch.zeros(5, 8))
    with pytest.raises(TypeError, match=rf"^codebook must be one of .*, got {dtype}$"):
        function(torch.zeros(4, 8), torch.zeros(5, 8, dtype=dtype))


@SEARCHES
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_other_numbers(function, dtype):
    with pytest.raises(TypeError, match=rf"^z must be one of .*, got {dtype}$"):
        function(torch.zeros(4, 8, dtype=dtype), torch.zeros(5, 8, dtype=dtype))


@SEARCHES
def test_two_dtypes(function):
    message = r"^codebook must have z's dtype torch.float32, got torch.float64$"
    with pytest.raises(TypeError, match=message):
        function(torch.zeros(4, 8), torch.zeros(5, 8).double())


@SEARCHES
def test_two_devices(function):
    with pytest.raises(ValueError, match=r"^codebook must be on z's device cpu, got meta$"):
        function(torch.zeros(4, 8), torch.zeros(5, 8, device="meta"))
    with pytest.raises(ValueError, match=r"^codebook must be on z's device meta, got cpu$"):
        function(torch.zeros(4, 8, device="meta"), torch.zeros(5, 8))


def test_channel_first():
    with pytest.raises(ValueError, match=re.escape("z must be [B, D, ...] with channel_first")):
        vqvae_fast.quantize(torch.zeros(8), torch.zeros(5, 8), channel_first=True)
    with pytest.raises(ValueError, match=re.escape("codebook must be [K, D] with channel_first")):
        vqvae_fast.quantize(torch.zeros(2, 8, 3), torch.zeros(2, 5, 8), channel_first=True)
    with pytest.raises(ValueError, match=re.escape("codebook must be [K, D=8]")):
        vqvae_fast.quantize(torch.zeros(2, 8, 3), torch.zeros(5, 3), channel_first=True)


@pytest.mark.parametrize(
    ("src", "indices", "count", "error", "message"),
    [
        ((4, 8), (5,), 3, ValueError, "indices must have src's shape without its last dimension"),
        ((4, 8), (4, 1), 3, ValueError, "last dimension, [4], got [4, 1]"),
        ((), (), 3, ValueError, "indices must have src's shape"),
        ((4, 8), (4,), 0, ValueError, "num_segments must be at least 1, got 0"),
        ((4, 8), (4,), -1, ValueError, "num_segments must be at least 1, got -1"),
    ],
)
def test_segment_sum(src, indices, count, error, message):
    with pytest.raises(error, match=re.escape(message)):
        vqvae_fast.segment_sum(torch.zeros(src), torch.zeros(indices, dtype=torch.int64), count)


def test_segment_sum_takes_numpys_integers():
    sums, _ = vqvae_fast.segment_sum(torch.ones(4, 8), torch.zeros(4).long(), np.int64(3))
    assert sums.shape == (3, 8)


def test_segment_sum_types():
    with pytest.raises(TypeError, match=r"^src must be one of .*, got torch.int64$"):
        vqvae_fast.segment_sum(
            torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 3
        )
    with pytest.raises(TypeError, match=r"^num_segments must be an integer, got 2\.5$"):
        vqvae_fast.segment_sum(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64), 2.5)
    with pytest.raises(TypeError, match=r"^indices must be torch.int64, got torch.int32$"):
        vqvae_fast.segment_sum(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"^indices must be on src's device cpu, got meta$"):
        vqvae_fast.segment_sum(
            torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64, device="meta"), 3
        )


def test_segment_sum_index():
    with pytest.raises(IndexError, match=r"indices must be below num_segments=3"):
        vqvae_fast.segment_sum(torch.zeros(2, 8), torch.tensor([0, 3]), 3)


@OF_KERNELS
@pytest.mark.parametrize("op", ["nearest_code", "quantize"])
def test_the_ops_alone_refuse_what_is_unsafe(op):
    """Called past the public functions, an op must not read out of bounds."""
    op = getattr(torch.ops.vqvae_fast, op)
    for z, codebook in [
        (torch.zeros(4, 8), torch.zeros(5, 7)),
        (torch.zeros(4, 8), torch.zeros(0, 8)),
        (torch.zeros(4, 8), torch.zeros(8)),
        (torch.zeros(2, 4, 8), torch.zeros(3, 5, 8)),
        (torch.zeros(()), torch.zeros(5, 8)),
        (torch.zeros(4, 8), torch.zeros(5, 8).double()),
        (torch.zeros(4, 8, dtype=torch.int32), torch.zeros(5, 8, dtype=torch.int32)),
    ]:
        with pytest.raises(REFUSED, match="must"):
            op(z, codebook)


@OF_KERNELS
@pytest.mark.parametrize("shape", [(8,), (0, 8), (5, 0), (2, 0, 8), (0, 5, 8), (1, 2, 5, 8)])
def test_packing_alone_refuses_what_is_no_codebook(shape):
    message = f"^{re.escape('codebook must be [K, D] or [H, K, D] and have elements, got [')}"
    with pytest.raises(REFUSED, match=message):
        torch.ops.vqvae_fast.pack_codebook(torch.zeros(shape))


@OF_KERNELS
def test_the_sum_alone_refuses_what_is_unsafe():
    op = torch.ops.vqvae_fast.segment_sum
    zeros = torch.zeros(4, dtype=torch.int64)
    for src, indices, count in [
        (torch.zeros(4, 8), zeros[:3], 2),
        (torch.zeros(4, 8), zeros.int(), 2),
        (torch.zeros(()), zeros[0], 2),
        (torch.zeros(4, 8), zeros, 0),
        (torch.zeros(4, 8), zeros + 2, 2),
        (torch.zeros(4, 8, dtype=torch.int32), zeros, 2),
    ]:
        with pytest.raises((*REFUSED, IndexError), match="must"):
            op(src, indices, count)


@OF_KERNELS
def test_the_errors_of_an_op_keep_their_kinds_in_a_compiled_graph():
    """They are thrown in C++, behind an ABI that knows no exceptions of Python."""
    sums = torch.compile(torch.ops.vqvae_fast.segment_sum.default, backend="aot_eager")
    with pytest.raises(IndexError, match=r"^indices must be below num_segments=2$"):
        sums(torch.zeros(4, 8), torch.full((4,), 2), 2)
    with pytest.raises(REFUSED, match=r"^indices must be int64, got Int$"):
        sums(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int32), 2)


@SEARCHES
def test_what_is_no_tensor(function):
    with pytest.raises(TypeError, match=r"^z must be a torch\.Tensor, got list$"):
        function([[0.0]], torch.zeros(5, 1))
    with pytest.raises(TypeError, match=r"^codebook must be a torch\.Tensor, got ndarray$"):
        function(torch.zeros(4, 1), torch.zeros(5, 1).numpy())


@pytest.mark.parametrize(
    "function", [vqvae_fast.nearest_code, vqvae_fast.quantize, vqvae_fast.residual_nearest_code]
)
def test_tensors_without_strides(function):
    codebook = torch.zeros(1, 5, 8)
    sparse = torch.ones(1, 4, 8).to_sparse()
    jagged = torch.nested.nested_tensor([torch.zeros(4, 8)], layout=torch.jagged)
    for z in (sparse, jagged):
        with pytest.raises(TypeError, match=rf"^z must be .* got one of {z.layout}$"):
            function(z, codebook)
    with pytest.raises(TypeError, match=r"^codebooks? must be .* got one of torch.sparse_coo$"):
        function(torch.zeros(1, 4, 8), sparse)


@OF_KERNELS
@pytest.mark.parametrize("lost", ["z", "codebook"])
@pytest.mark.parametrize(
    "function", [vqvae_fast.nearest_code, vqvae_fast.quantize, vqvae_fast.residual_nearest_code]
)
def test_tensors_whose_memory_was_taken_away(function, lost):
    arguments = {"z": torch.zeros(1, 4, 8), "codebook": torch.zeros(1, 5, 8)}
    arguments[lost].untyped_storage().resize_(0)
    shape = re.escape(str(list(arguments[lost].shape)))
    with pytest.raises(ValueError, match=f"^a tensor {shape} must have memory, got .* 0 bytes$"):
        function(*arguments.values())
