"""A flag that lives in a buffer and is known to Python."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vqvae_fast.distributed import is_distributed
from vqvae_fast.tracing import called_while_tracing

if TYPE_CHECKING:
    from typing_extensions import Self

# Where Python reads a tensor without waiting for a device.
_READ_AT_ONCE = ("cpu",)


class HostFlag:
    """What Python knows of a 0-d bool buffer; the buffer alone is the truth.

    On the CPU the buffer is read each time. Elsewhere that would wait for the device in each step,
    so it is read again only if torch shows a change: another tensor, as after ``.to()`` or in
    ``torch.func.functional_call``, or a new version, as after ``fill_``. torch.compile guards on
    :attr:`value`, which cannot follow the buffer inside a compiled function; a module reads its
    flag when a graph is made, in ``train()`` and in ``load_state_dict()`` for that.

    Attributes:
        value: what was read or written last.
    """

    def __init__(self, value: bool):
        self.value = value
        self._seen: Tensor | None = None
        self._version = 0

    def of(self, buffer: Tensor) -> bool:
        """What the buffer holds; under torch.compile what was known before."""
        if not torch.compiler.is_compiling() and (
            buffer.device.type in _READ_AT_ONCE or self._may_differ(buffer)
        ):
            self.read(buffer)
        return self.value

    def read(self, buffer: Tensor) -> None:
        """Read the buffer now. One on the meta device, or a fake one, holds nothing to read."""
        if not buffer.is_meta and not isinstance(buffer, FakeTensor):
            self.value = bool(buffer)
            self._remember(buffer)

    def write(self, buffer: Tensor, value: bool) -> None:
        """Set the buffer."""
        buffer.fill_(value)
        self.value = value
        if not torch.compiler.is_compiling():
            self._remember(buffer)

    def _remember(self, buffer: Tensor) -> None:
        self._seen = buffer
        self._version = -1 if buffer.is_inference() else buffer._version

    def _may_differ(self, buffer: Tensor) -> bool:
        if buffer is not self._seen or buffer.is_inference():
            return True
        # DistributedDataParallel writes every buffer in every step: there a version says nothing.
        return not is_distributed() and buffer._version != self._version


class StartsOnce(nn.Module):
    """A module with a buffer that says whether k-means has started the codes.

    Args:
        started: what it says at first.

    Buffers:
        initted: 0-d bool; whatever sets it to False makes the next training batch start the codes.
    """

    initted: Tensor

    def __init__(self, started: bool):
        super().__init__()
        self.register_buffer("initted", torch.tensor(started))
        self._initted = HostFlag(started)

    @property
    def started(self) -> bool:
        """Whether there are codes; nothing waits for the device to know that there are."""
        if torch.compiler.is_compiling():
            self._read_initted()
        return self._initted.of(self.initted)

    @called_while_tracing
    def _read_initted(self) -> None:
        self._initted.read(self.initted)

    def train(self, mode: bool = True) -> "Self":
        """Switch between training and eval; a compiled module then notices a changed initted."""
        if not torch.compiler.is_compiling():
            self._initted.read(self.initted)
        return super().train(mode)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "initted")
        if stored is not None and stored.numel() == 1:
            # Older releases of vector-quantize-pytorch have a float of shape [1].
            state_dict[prefix + "initted"] = stored.reshape(()).bool()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._initted.read(self.initted)
