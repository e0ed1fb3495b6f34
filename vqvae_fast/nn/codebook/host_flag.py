"""A flag that lives in a buffer and is known to Python."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vqvae_fast.distributed import is_distributed

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
