"""Defines torch.ops.vqvae_fast.*: the schemas and the fakes of the ops.

:mod:`vqvae_fast.backends` has the kernels. :mod:`vqvae_fast.functional` validates inputs; the ops
themselves only refuse unsafe ones, and every call for which the requested backend cannot run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.backends import dispatch
from vqvae_fast.dtypes import distance_dtype
from vqvae_fast.stride_order import order_symbolic_strides

_library = torch.library.Library("vqvae_fast", "FRAGMENT")


def _define(schema: str) -> None:
    """Defines an op that Inductor may give its inputs in the layout in which they are.

    The kernels take any strides. Without the tag, Inductor copies the vectors of a feature map that
    it has laid out channels last into eager mode's layout first.
    """
    _library.define(schema, tags=torch.Tag.flexible_layout)


_define("nearest_code(Tensor z, Tensor codebook) -> (Tensor indices, Tensor distances)")
_define(
    "nearest_code.on(Tensor z, Tensor codebook, str backend) -> (Tensor indices, Tensor distances)"
)
_define(
    "quantize(Tensor z, Tensor codebook) -> (Tensor quantized, Tensor indices, Tensor distances)"
)
_define("nearest_codes(Tensor z, Tensor codebook, SymInt k) -> (Tensor indices, Tensor distances)")
# Counts the rows of a search that the integer filter settles; -1 means that it does not serve. Only
# the C++ kernels have a filter, and only tests call this: results do not show what found them.
_define("rows_settled_by_filter(Tensor z, Tensor codebook, Tensor packed) -> int")
_define("residual_nearest_code(Tensor z, Tensor codebooks) -> (Tensor indices, Tensor quantized)")
# The next ops take a codebook and its packed form, bytes that only the backend reads. No bytes mean
# that the backend packs at each call.
_define("pack_codebook(Tensor codebook) -> Tensor")
_define(
    "nearest_packed_code(Tensor z, Tensor codebook, Tensor packed) "
    "-> (Tensor indices, Tensor distances)"
)
_define(
    "nearest_packed_codes(Tensor z, Tensor codebook, Tensor packed, SymInt k) "
    "-> (Tensor indices, Tensor distances)"
)
_define(
    "quantize_packed(Tensor z, Tensor codebook, Tensor packed) "
    "-> (Tensor quantized, Tensor indices, Tensor distances)"
)
_define(
    "residual_nearest_packed_code(Tensor z, Tensor codebooks, Tensor packed) "
    "-> (Tensor indices, Tensor quantized)"
)
# Residual quantization whose stages' projections were composed: `entry` leads from the vectors to
# what the stages see, `exit` from their codes to the sum. `compared` [Q, K, D] is what the searches
# compare in the place of the codes, and `packed` its packed form.
_define(
    "composed_residual_code(Tensor vectors, Tensor entry, Tensor entry_bias, Tensor codebooks, "
    "Tensor compared, Tensor packed, Tensor corrections, Tensor exit, Tensor exit_bias, "
    "bool cosine) -> (Tensor indices, Tensor quantized)"
)
# The vectors through a linear map, `columns` elements each: matrix [C, columns up to a multiple of
# 16], bias [as many].
_define("project(Tensor vectors, Tensor matrix, Tensor bias, SymInt columns) -> Tensor")
_define(
    "segment_sum(Tensor src, Tensor indices, SymInt num_segments) -> (Tensor sums, Tensor counts)"
)
_define(
    "residual_backward(Tensor grad_quantized, Tensor grad_losses, Tensor z, Tensor[] books, "
    "Tensor indices, bool rotates) -> Tensor"
)
_define(
    "moving_average_(Tensor(a!) average, Tensor(b!) cluster_size, Tensor(c!) codebook, Tensor src, "
    "Tensor indices, float decay, float eps) -> ()"
)
# These ops return the codes as they are now. torch's compiler would otherwise read them again in
# the backward pass, after a moving average has changed them; the result of an op it keeps.
_define("take_codes(Tensor codebook, Tensor indices) -> Tensor")
_define("copy_of_codes(Tensor codebook) -> Tensor")
_define(
    "quantize_backward(Tensor grad_quantized, Tensor grad_loss, Tensor z, Tensor codebook, "
    "Tensor indices, float commitment_weight, float codebook_weight) "
    "-> (Tensor grad_z, Tensor grad_codebook)"
)


dispatch.register(_library)


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers the decorated function as the fake of the op ``name``."""

    def register(fake: Callable[..., Any]) -> None:
        def traced(*args: Any, **kwargs: Any) -> Any:
            order_symbolic_strides()  # Inductor may be what traces the op
            return fake(*args, **kwargs)

        torch.library.register_fake(f"vqvae_fast::{name}", traced, lib=_library)

    return register


@_fake("nearest_code")
def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    shape = z.shape[:-1]
    distances = z.new_empty(shape, dtype=distance_dtype(z.dtype))
    return z.new_empty(shape, dtype=torch.int64), distances


@_fake("nearest_code.on")
def _(z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_code(z, codebook)  # type: ignore[no-any-return]


@_fake("nearest_codes")
def _(z: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*z.shape[:-1], k)
    distances = z.new_empty(shape, dtype=distance_dtype(z.dtype))
    return z.new_empty(shape, dtype=torch.int64), distances


@_fake("nearest_packed_codes")
def _(z: Tensor, codebook: Tensor, packed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_codes(z, codebook, k)  # type: ignore[no-any-return]


@_fake("quantize")
def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = z.shape[:-1]
    distances = z.new_empty(shape, dtype=distance_dtype(z.dtype))
    return torch.empty_like(z), z.new_empty(shape, dtype=torch.int64), distances


@_fake("residual_nearest_code")
def _(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    indices = z.new_empty((*z.shape[:-1], codebooks.shape[0]), dtype=torch.int64)
    return indices, torch.empty_like(z)


@_fake("pack_codebook")
def _(codebook: Tensor) -> Tensor:
    raise RuntimeError("the size of a packed codebook is not known while a call is traced")


@_fake("nearest_packed_code")
def _(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_code(z, codebook)  # type: ignore[no-any-return]


@_fake("quantize_packed")
def _(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.vqvae_fast.quantize(z, codebook)  # type: ignore[no-any-return]


@_fake("residual_nearest_packed_code")
def _(z: Tensor, codebooks: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.residual_nearest_code(z, codebooks)  # type: ignore[no-any-return]


@_fake("composed_residual_code")
def _(
    vectors: Tensor,
    entry: Tensor,
    entry_bias: Tensor,
    codebooks: Tensor,
    compared: Tensor,
    packed: Tensor,
    corrections: Tensor,
    exit: Tensor,
    exit_bias: Tensor,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    indices = vectors.new_empty((*vectors.shape[:-1], codebooks.shape[0]), dtype=torch.int64)
    return indices, vectors.new_empty(vectors.shape)


@_fake("project")
def _(vectors: Tensor, matrix: Tensor, bias: Tensor, columns: int) -> Tensor:
    return vectors.new_empty((*vectors.shape[:-1], columns))


@_fake("segment_sum")
def _(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    dtype = distance_dtype(src.dtype)
    sums = src.new_empty((num_segments, src.shape[-1]), dtype=dtype)
    return sums, src.new_empty((num_segments,), dtype=dtype)


@_fake("take_codes")
def _(codebook: Tensor, indices: Tensor) -> Tensor:
    return codebook.new_empty((*indices.shape, codebook.shape[-1]))


@_fake("copy_of_codes")
def _(codebook: Tensor) -> Tensor:
    return torch.empty_like(codebook)


@_fake("quantize_backward")
def _(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), codebook.new_empty(codebook.shape)


@_fake("moving_average_")
def _(
    average: Tensor,
    cluster_size: Tensor,
    codebook: Tensor,
    src: Tensor,
    indices: Tensor,
    decay: float,
    eps: float,
) -> None:
    return None


@_fake("residual_backward")
def _(
    grad_quantized: Tensor,
    grad_losses: Tensor,
    z: Tensor,
    books: Sequence[Tensor],
    indices: Tensor,
    rotates: bool,
) -> Tensor:
    return z.new_empty(z.shape)
