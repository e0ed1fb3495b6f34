"""Modules whose state does not bear half precision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


class WideBuffers(nn.Module):
    """Its own buffers stay in float32 when the module around it is cast to half precision.

    With a decay of 0.99 a bfloat16 average would round every change away.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it bare
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype in _HALF:
                setattr(self, name, buffer.to(after.device))
        return self
