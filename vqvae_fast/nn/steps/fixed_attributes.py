"""Attributes of a module that say how it was made."""

from typing import Any, ClassVar

from torch import nn


class FixedAttributes(nn.Module):
    """Refuses to change attributes that only have an effect while the module is made.

    Attributes:
        FIXED: their names. Each may be set once; its own value may be set again.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.FIXED and name in vars(self) and vars(self)[name] != value:
            kind = type(self).__name__
            raise AttributeError(
                f"{name} of a {kind} is fixed when it is made: it is {vars(self)[name]!r}, "
                f"got {value!r}; make a new {kind}"
            )
        super().__setattr__(name, value)
