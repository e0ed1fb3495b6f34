"""Steps that change state, of which only the device knows whether they are to happen.

Python must not wait for the device, so the step is computed and what it has written is undone.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

# Whether a stage runs: 0-d where only the device knows.
Runs = bool | Tensor
Result = TypeVar("Result")


def undone_unless(
    runs: Runs, state: Callable[[], Iterable[Tensor]], step: Callable[[], Result]
) -> Result:
    """Run ``step`` and give its result; if ``runs`` is a false tensor, restore ``state``."""
    if not isinstance(runs, Tensor):
        return step()
    with torch.no_grad():
        before = [(tensor, tensor.clone()) for tensor in state()]
    result = step()
    with torch.no_grad():
        for tensor, old in before:
            tensor.copy_(torch.where(runs, tensor, old))
    return result
