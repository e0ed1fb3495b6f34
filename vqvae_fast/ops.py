"""Registers the schemas, the fakes and the kernels of torch.ops.vqvae_fast.* with the dispatcher.

:mod:`vqvae_fast.backends` chooses the kernels. For the CPU it chooses once, at import: the compiled
extension then registers its kernels under the same names, so a call costs no choice. For CUDA it
chooses at the first call on a device. :mod:`vqvae_fast.reference` serves everything else.
:mod:`vqvae_fast.functional` validates inputs; the ops themselves only refuse unsafe ones, and every
call for which the requested backend cannot run.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae_fast import _native, backends, reference, settings
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
# These ops return the codes as they are now. torch's compiler would otherwise read them again in
# the backward pass, after a moving average has changed them; the result of an op it keeps.
_define("take_codes(Tensor codebook, Tensor indices) -> Tensor")
_define("copy_of_codes(Tensor codebook) -> Tensor")
_define(
    "quantize_backward(Tensor grad_quantized, Tensor grad_loss, Tensor z, Tensor codebook, "
    "Tensor indices, float commitment_weight, float codebook_weight) "
    "-> (Tensor grad_z, Tensor grad_codebook)"
)


def _quantize_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The readable formula, with the segment sum of the device's backend."""
    return reference.quantize_backward(
        *arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default
    )


def _moving_average_(*arguments: Any) -> None:
    """The same for the moving averages."""
    reference.moving_average_(*arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default)


def _residual_stage_by_stage(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The readable loop, with the search of the device's backend."""
    return reference.residual_nearest_code(
        z, codebooks, nearest_code=torch.ops.vqvae_fast.nearest_code.default
    )


@contextlib.contextmanager
def _kernels_for(t: Tensor, name: str | None = None) -> Iterator[backends.Kernels]:
    """The kernels for a tensor; call them inside this context.

    It switches autograd off, which works around the ops and never inside. It makes the tensor's
    device current, because Triton launches on the current device. For a CPU tensor that costs next
    to nothing.
    """
    with torch.no_grad(), torch.cuda.device_of(t):
        yield backends.kernels(t.device, name)


def _residual_nearest_code(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen backend's own launch of all stages, if it has one."""
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


# The fallback of each op, on devices and for ops that no other kernel serves.
_DEFAULT: dict[str, Callable[..., Any]] = {
    "nearest_code": reference.nearest_code,
    "quantize": reference.quantize,
    "segment_sum": reference.segment_sum,
    "take_codes": reference.take_codes,
    "copy_of_codes": reference.copy_of_codes,
    "residual_backward": reference.residual_backward,
    "quantize_backward": _quantize_backward,
    "moving_average_": _moving_average_,
    "residual_nearest_code": _residual_stage_by_stage,
}
# Those ops that a backend may have, served by the chosen backend.
_CHOSEN = {
    name: _chosen_kernel(name)
    for name in ("nearest_code", "quantize", "segment_sum", "quantize_backward")
} | {"residual_nearest_code": _residual_nearest_code}


def _register(kernels: dict[str, Callable[..., Any]], key: str) -> None:
    for name, kernel in kernels.items():
        _library.impl(name, kernel, key)


def _refuse(first: Tensor, *rest: Any) -> None:
    """Raise what the choice for this tensor's device raises."""
    backends.chosen(first.device)


def _serve_cpu() -> None:
    """Settle which kernels serve CPU tensors."""
    try:
        served = backends.chosen("cpu").name
    except (ValueError, RuntimeError):  # the first call raises it, not the import
        _register(dict.fromkeys(_DEFAULT, _refuse), "CPU")
        return
    if served == "triton":
        _register(_CHOSEN, "CPU")
    elif served == "cpu":
        assert _native.extension is not None
        _native.extension.register_kernels()


_library.impl("nearest_code.on", _nearest_code_on, "CompositeExplicitAutograd")
if settings.current.problem:
    _register(dict.fromkeys(_DEFAULT, _refuse), "CompositeExplicitAutograd")
else:
    _register(_DEFAULT, "CompositeExplicitAutograd")
    _register(_CHOSEN, "CUDA")
    _serve_cpu()


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
