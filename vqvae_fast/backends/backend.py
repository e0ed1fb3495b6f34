"""What a backend is."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Availability(NamedTuple):
    """Whether a backend can serve tensors on a device.

    Attributes:
        name: the backend's.
        title: what runs, for people.
        available: whether it can run there.
        reason: why, or why not.
    """

    name: str
    title: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Kernels:
    """The ops as one backend runs them; arguments and results are those of the ops.

    An op that a backend leaves out (None) runs in plain PyTorch, and what it searches and sums goes
    through the dispatcher, to this backend again. A backend that packs codebooks beforehand has
    ``pack_codebook`` and the four ops that take its result; for others nothing is packed.
    """

    nearest_code: Callable[..., tuple[Tensor, Tensor]]
    nearest_codes: Callable[..., tuple[Tensor, Tensor]] | None = None
    quantize: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    segment_sum: Callable[..., tuple[Tensor, Tensor]] | None = None
    residual_nearest_code: Callable[..., tuple[Tensor, Tensor]] | None = None
    pack_codebook: Callable[..., Tensor] | None = None
    nearest_packed_code: Callable[..., tuple[Tensor, Tensor]] | None = None
    nearest_packed_codes: Callable[..., tuple[Tensor, Tensor]] | None = None
    quantize_packed: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    residual_nearest_packed_code: Callable[..., tuple[Tensor, Tensor]] | None = None
    composed_residual_code: Callable[..., tuple[Tensor, Tensor]] | None = None
    project: Callable[..., Tensor] | None = None
    quantize_backward: Callable[..., tuple[Tensor, Tensor]] | None = None
    residual_backward: Callable[..., Tensor] | None = None
    moving_average_: Callable[..., None] | None = None

    @classmethod
    def of(cls, module: Any) -> "Kernels":
        """Those functions of a module, or of another namespace, that have an op's name."""
        ops: dict[str, Any] = {op.name: getattr(module, op.name, None) for op in fields(cls)}
        return cls(**ops)


@dataclass(frozen=True)
class Backend:
    """One way of running the ops.

    Attributes:
        name: that of its folder; ``VQVAE_FAST_BACKEND`` and ``backend=`` call it so.
        priority: of the backends that can run, the one with the highest serves.
        devices: the types of the devices to which a request by name applies; on all others the
            choice stays automatic.
        check: whether it can serve tensors on a device, and why. This is asked without a request,
            so it imports no more than it needs to know.
        kernels: the kernels, which are imported here.
        compiles: whether the kernels are compiled at their first call.
        register_on_cpu: registers the kernels with the dispatcher, under the key CPU, so that a
            call costs no choice; None lets every call on the CPU go through Python.
    """

    name: str
    priority: int
    devices: Callable[[], tuple[str, ...]]
    check: Callable[[torch.device], Availability]
    kernels: Callable[[], Kernels]
    compiles: bool = False
    register_on_cpu: Callable[[], None] | None = None
