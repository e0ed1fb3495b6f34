"""What the dispatcher knows: the schemas, the fakes and the kernels of torch.ops.vqvae_fast.*.

The compiled extension registers its kernels for the CPU under the same names when it loads;
:mod:`vqvae_fast.backends` chooses for CUDA; everything else is served by
:mod:`vqvae_fast.reference`. Inputs are validated by :mod:`vqvae_fast.functional`; the ops
themselves only refuse what would be unsafe.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae_fast import _native, backends, reference
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
_define("residual_nearest_code(Tensor z, Tensor codebooks) -> (Tensor indices, Tensor quantized)")
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
# What the codes are now. torch's compiler would read them again in the backward pass, when a moving
# average has been written to them; what an op has returned it keeps.
_define("take_codes(Tensor codebook, Tensor indices) -> Tensor")
_define("copy_of_codes(Tensor codebook) -> Tensor")
_define(
    "quantize_backward(Tensor grad_quantized, Tensor grad_loss, Tensor z, Tensor codebook, "
    "Tensor indices, float commitment_weight, float codebook_weight) "
    "-> (Tensor grad_z, Tensor grad_codebook)"
)


def _quantize_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The readable formula around the segment sum of whoever serves the device."""
    return reference.quantize_backward(
        *arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default
    )


def _moving_average_(*arguments: Any) -> None:
    """The same for the moving averages."""
    reference.moving_average_(*arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default)


def _residual_stage_by_stage(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The readable loop around the search of whoever serves the device."""
    return reference.residual_nearest_code(
        z, codebooks, nearest_code=torch.ops.vqvae_fast.nearest_code.default
    )


@contextlib.contextmanager
def _kernels_for(t: Tensor, name: str | None = None) -> Iterator[backends.Kernels]:
    """The kernels for a tensor, to be called inside.

    Autograd lies around the ops, never inside; and Triton launches on the current device, which
    must be the tensor's. For a CPU tensor that costs next to nothing.
    """
    with torch.no_grad(), torch.cuda.device_of(t):
        yield backends.kernels(t.device, name)


def _residual_nearest_code(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen backend's own launch of all stages, where it has one."""
    with _kernels_for(z) as kernels:
        own = getattr(kernels, "residual_nearest_code", _residual_stage_by_stage)
        return own(z, codebooks)


def _chosen_kernel(name: str) -> Callable[..., Any]:
    """The op ``name`` of the backend that is chosen for the first tensor's device."""

    def kernel(first: Tensor, *rest: Any) -> Any:
        with _kernels_for(first) as kernels:
            return getattr(kernels, name)(first, *rest)

    return kernel


def _nearest_code_on(z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The search of the backend of this name."""
    with _kernels_for(z, backend) as kernels:
        return kernels.nearest_code(z, codebook)


_library.impl("nearest_code.on", _nearest_code_on, "CompositeExplicitAutograd")
_SERVED_BY_REFERENCE = (
    *("nearest_code", "quantize", "segment_sum", "take_codes", "copy_of_codes"),
    "residual_backward",
)
for _name in _SERVED_BY_REFERENCE:
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
_library.impl("quantize_backward", _quantize_backward, "CompositeExplicitAutograd")
_library.impl("moving_average_", _moving_average_, "CompositeExplicitAutograd")
_library.impl("residual_nearest_code", _residual_stage_by_stage, "CompositeExplicitAutograd")
_library.impl("residual_nearest_code", _residual_nearest_code, "CUDA")
if _native.triton_interprets:
    _library.impl("residual_nearest_code", _residual_nearest_code, "CPU")
for _name in ("nearest_code", "quantize", "segment_sum", "quantize_backward"):
    _library.impl(_name, _chosen_kernel(_name), "CUDA")
    if _native.triton_interprets:
        _library.impl(_name, _chosen_kernel(_name), "CPU")


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
    distances = z.new_empty(shape, dtype=reference.distance_dtype(z.dtype))
    return z.new_empty(shape, dtype=torch.int64), distances


@_fake("nearest_code.on")
def _(z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_code(z, codebook)  # type: ignore[no-any-return]


@_fake("quantize")
def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = z.shape[:-1]
    distances = z.new_empty(shape, dtype=reference.distance_dtype(z.dtype))
    return torch.empty_like(z), z.new_empty(shape, dtype=torch.int64), distances


@_fake("residual_nearest_code")
def _(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    indices = z.new_empty((*z.shape[:-1], codebooks.shape[0]), dtype=torch.int64)
    return indices, torch.empty_like(z)


@_fake("segment_sum")
def _(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    dtype = reference.distance_dtype(src.dtype)
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
