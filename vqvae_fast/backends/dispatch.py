"""Registers the kernels of the backends with torch's dispatcher.

For the CPU the backend is chosen once, at import: the compiled extension then registers its kernels
under the ops' names, so a call costs no choice. For other devices it is chosen at the first call.
Ops and devices that no backend serves run in plain PyTorch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from vqvae_fast import settings
from vqvae_fast.backends import choice
from vqvae_fast.backends.backend import Kernels
from vqvae_fast.backends.reference import ops as reference


def register(library: torch.library.Library) -> None:
    """Register a kernel of every op for every device."""

    def serve(kernels: dict[str, Callable[..., Any]], key: str) -> None:
        for op, kernel in kernels.items():
            library.impl(op, kernel, key)

    library.impl("nearest_code.on", _nearest_code_on, "CompositeExplicitAutograd")
    library.impl("moving_average_", _moving_average_is_counted, "ADInplaceOrView", with_keyset=True)
    if settings.current.problem:
        serve(dict.fromkeys(_DEFAULT, _refuse), "CompositeExplicitAutograd")
        return
    serve(_DEFAULT, "CompositeExplicitAutograd")
    of_backends = {op.name: chosen_kernel(op.name) for op in dataclasses.fields(Kernels)}
    devices = {device for backend in choice.by_name().values() for device in backend.devices()}
    for device in sorted(devices - {"cpu"}):
        serve(of_backends, torch._C._dispatch_key_for_device(device))
    try:
        served = choice.by_name()[choice.chosen("cpu").name]
    except (ValueError, RuntimeError):  # the first call raises it, not the import
        serve(dict.fromkeys(_DEFAULT, _refuse), "CPU")
        return
    if served.register_on_cpu is not None:
        served.register_on_cpu()
    else:
        serve(of_backends, "CPU")


def _quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gather in plain PyTorch, behind the search of the device's backend."""
    return reference.quantize(z, codebook, nearest_code=torch.ops.vqvae_fast.nearest_code.default)


def _quantize_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The gradients in plain PyTorch, with the segment sum of the device's backend."""
    return reference.quantize_backward(
        *arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default
    )


def _moving_average_(*arguments: Any) -> None:
    """The averages in plain PyTorch, with the segment sum of the device's backend."""
    reference.moving_average_(*arguments, segment_sum=torch.ops.vqvae_fast.segment_sum.default)


def _moving_average_is_counted(
    keyset: torch._C.DispatchKeySet,
    average: Tensor,
    cluster_size: Tensor,
    codebook: Tensor,
    *rest: Any,
) -> None:
    """Run the device's kernel, and count its writes so that autograd knows of them.

    Raises:
        RuntimeError: writes to a tensor of inference mode cannot be counted outside of that mode.
    """
    written = (average, cluster_size, codebook)
    if not torch.is_inference_mode_enabled() and any(t.is_inference() for t in written):
        raise RuntimeError(
            "moving_average_ cannot write to a tensor that was made in inference mode outside of "
            "that mode: clone the tensor"
        )
    op = torch.ops.vqvae_fast.moving_average_.default
    below = keyset & torch._C._after_ADInplaceOrView_keyset
    op.redispatch(below, average, cluster_size, codebook, *rest)
    increment_version(written)


def _residual_nearest_code(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """A loop over the stages, with the search of the device's backend."""
    return reference.residual_nearest_code(
        z, codebooks, nearest_code=torch.ops.vqvae_fast.nearest_code.default
    )


def _pack_codebook(codebook: Tensor) -> Tensor:
    """No packed form: the searches take the codebook itself."""
    return codebook.new_empty((*codebook.shape[:-2], 0), dtype=torch.uint8)


def _nearest_packed_code(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_code(z, codebook)  # type: ignore[no-any-return]


def _nearest_packed_codes(
    z: Tensor, codebook: Tensor, packed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.nearest_codes(z, codebook, k)  # type: ignore[no-any-return]


def _quantize_packed(z: Tensor, codebook: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.vqvae_fast.quantize(z, codebook)  # type: ignore[no-any-return]


def _residual_nearest_packed_code(
    z: Tensor, codebooks: Tensor, packed: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.residual_nearest_code(z, codebooks)  # type: ignore[no-any-return]


def _composed_residual_code(*arguments: Any) -> tuple[Tensor, Tensor]:
    """A loop over the stages, with the search of the device's backend."""
    return reference.composed_residual_code(
        *arguments, nearest_packed_code=torch.ops.vqvae_fast.nearest_packed_code.default
    )


# How each op runs where the backend has no kernel of its own for it.
_DEFAULT: dict[str, Callable[..., Any]] = {
    "nearest_code": reference.nearest_code,
    "nearest_codes": reference.nearest_codes,
    "quantize": _quantize,
    "segment_sum": reference.segment_sum,
    "residual_nearest_code": _residual_nearest_code,
    "pack_codebook": _pack_codebook,
    "nearest_packed_code": _nearest_packed_code,
    "nearest_packed_codes": _nearest_packed_codes,
    "quantize_packed": _quantize_packed,
    "residual_nearest_packed_code": _residual_nearest_packed_code,
    "composed_residual_code": _composed_residual_code,
    "project": reference.project,
    "quantize_backward": _quantize_backward,
    "residual_backward": reference.residual_backward,
    "moving_average_": _moving_average_,
    "take_codes": reference.take_codes,
    "copy_of_codes": reference.copy_of_codes,
}


@contextlib.contextmanager
def _kernels_for(t: Tensor, name: str | None = None) -> Iterator[Kernels]:
    """The kernels for a tensor; call them inside this context.

    It switches autograd off, which works around the ops and never inside. It makes the tensor's
    device current, because Triton launches on the current device. For a CPU tensor that costs next
    to nothing.
    """
    with torch.no_grad(), torch.cuda.device_of(t):
        yield choice.kernels(t.device, name)


def chosen_kernel(op: str) -> Callable[..., Any]:
    """The op of the backend that is chosen for the first tensor's device."""

    def kernel(first: Tensor, *rest: Any) -> Any:
        with _kernels_for(first) as kernels:
            own = getattr(kernels, op)
            return (_DEFAULT[op] if own is None else own)(first, *rest)

    return kernel


def _nearest_code_on(z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The search of the backend of this name."""
    with _kernels_for(z, backend) as kernels:
        return kernels.nearest_code(z, codebook)


def _refuse(first: Tensor, *rest: Any) -> None:
    """Raise what the choice for this tensor's device raises."""
    choice.chosen(first.device)
