"""What tells whether tensors have changed since they were last looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from vqvae_fast import _native


class Description(NamedTuple):
    """What is known of tensors without reading their elements.

    Attributes:
        seen: which object each is, where it lies, and how often it was written to. It differs
            after a change, as long as the caller holds the tensors and their storages, whose
            addresses others could have otherwise. The object counts because two tensors of one
            storage (``.data``) may have been written to equally often.
        requires_grad: whether any requires a gradient.
        has_gradient: whether any has one.
    """

    seen: object
    requires_grad: bool
    has_gradient: bool


def describe(tensors: Sequence[Tensor]) -> Description | None:
    """Describe tensors; None if one holds no numbers, or none whose changes torch counts."""
    # The extension learns from an error that a tensor is special, which takes a millisecond. The
    # tensors of a module are mostly of one kind, so the first one is asked beforehand.
    if _native.extension is not None and tensors and _can_be_described(tensors[0]):
        quick = _native.extension.description(tensors)
        if quick is not None:
            return Description(*quick)
    return describe_in_python(tensors)


def describe_in_python(tensors: Sequence[Tensor]) -> Description | None:
    """As :func:`describe`, of which the compiled extension has a quicker form."""
    # Otherwise a subclass of Tensor would have each attribute pass its __torch_function__.
    with torch._C.DisableTorchFunctionSubclass():
        if not all(map(_can_be_described, tensors)):
            return None
        seen = [
            (
                id(part),
                part.data_ptr(),
                part._version,
                part.dtype,
                part.device,
                part.shape,
                part.stride(),
            )
            for part in tensors
        ]
        return Description(
            seen,
            any(part.requires_grad for part in tensors),
            any(part.is_leaf and part.grad is not None for part in tensors),
        )


def _can_be_described(source: Tensor) -> bool:
    """Whether a tensor holds numbers whose changes torch counts."""
    holds_numbers = not (source.is_meta or isinstance(source, FakeTensor))
    return holds_numbers and not source.is_inference() and not is_functorch_wrapped_tensor(source)
