"""A state dict from which a format takes every entry that it knows."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from vqvae_fast.checkpoints.tensors import FLOATS, IN_WORDS


class Weights:
    """The part of a state dict below a prefix.

    A format takes out what it knows; :meth:`check_empty` raises if anything is left.

    Args:
        state: the state dict.
        prefix: what all names to keep begin with; it is cut off.
    """

    def __init__(self, state: Mapping[str, Tensor], prefix: str = ""):
        self.prefix = prefix
        self._left = {
            name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        """The names that are left, in the order of the state dict."""
        return iter(self._left)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._left:
            raise ValueError(f"the checkpoint lacks {self.prefix + name}")
        return self._left[name]

    def shaped(self, name: str, *shape: int | None) -> Tensor:
        """A tensor that has this shape (None: any size but 0); it stays where it is.

        Raises:
            ValueError: it is missing, has another shape, or is a matrix of integers.
        """
        tensor = self[name]
        sizes = zip(tensor.shape, shape, strict=False)
        if tensor.dim() != len(shape) or any(
            given != size if size is not None else given == 0 for given, size in sizes
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{self.prefix + name} must be [{wanted}], got {list(tensor.shape)}")
        if tensor.dim() > 1 and tensor.dtype not in FLOATS:
            raise ValueError(f"{self.prefix + name} must be {IN_WORDS}, got {tensor.dtype}")
        return tensor

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Take out a tensor that has this shape."""
        tensor = self.shaped(name, *shape)
        del self._left[name]
        return tensor

    def take_flag(self, name: str) -> bool:
        """Take out a flag: one number of any shape and type."""
        tensor = self.pop(name)
        if tensor.numel() != 1:
            raise ValueError(f"{self.prefix + name} must be one flag, got {list(tensor.shape)}")
        return bool(tensor)

    def pop(self, name: str) -> Tensor:
        """Take out a tensor of any shape."""
        tensor = self[name]
        del self._left[name]
        return tensor

    def take_first(self, *names: str) -> Tensor | None:
        """Take out the first tensor of these names, of any shape; None if there is none."""
        return next((self._left.pop(name) for name in names if name in self._left), None)

    def first_of(self, *names: str) -> str:
        """The first of these names that is there; if none is, the first, for the error message."""
        return next((name for name in names if name in self._left), names[0])

    def replace(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in the place of one that is there."""
        self._left[name] = tensor

    def take_below(self, prefix: str) -> "Weights":
        """Take out all that begins with ``prefix``, as Weights of its own."""
        part = Weights(self._left, prefix)
        part.prefix = self.prefix + prefix
        for name in part:
            del self._left[prefix + name]
        return part

    def take_all(self) -> dict[str, Tensor]:
        """Take out everything."""
        everything, self._left = self._left, {}
        return everything

    def numbered(self, name: str) -> list["Weights"]:
        """Take out ``name.0.``, ``name.1.``, ... in this order.

        Raises:
            ValueError: there are none, or a number is missing.
        """
        matches = (re.match(rf"{re.escape(name)}\.([0-9]{{1,9}})\.", key) for key in self._left)
        numbers = sorted({int(match[1]) for match in matches if match})
        if not numbers or numbers != list(range(len(numbers))):
            raise ValueError(
                f"{self.prefix}{name} must be numbered from 0 on without gaps, got {numbers}"
            )
        return [self.take_below(f"{name}.{number}.") for number in numbers]

    def check_empty(self) -> None:
        """Raise ValueError if something is left."""
        if self._left:
            raise ValueError(
                "the checkpoint holds more than is known of its format: "
                f"{shortened([self.prefix + name for name in self._left])}"
            )


def shortened(names: list[str], most: int = 8) -> str:
    """The first names, and how many there are."""
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed}, ... ({len(names)} in all)"
