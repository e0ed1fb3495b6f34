"""A stored quantizer: the name of its class, the arguments that build it, its weights."""

from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vqvae_fast import nn as quantizers
from vqvae_fast.checkpoints.tensors import check_finite, check_sizes
from vqvae_fast.recipes import quantizer_classes

FORMAT = "vqvae_fast quantizer 1"

# The classes that a file may ask for, beside those of the recipes.
_CLASSES: dict[str, Callable[..., nn.Module]] = {
    quantizer.__name__: quantizer
    for quantizer in (
        quantizers.VectorQuantizer,
        quantizers.VectorQuantize,
        quantizers.ResidualVQ,
        quantizers.GroupedResidualVQ,
        quantizers.SplitResidualVQ,
        quantizers.SimVQ,
        quantizers.ResidualSimVQ,
        quantizers.RandomProjectionQuantizer,
    )
}

# Arguments that say how many modules there are.
_COUNTS = ("num_quantizers", "groups", "depth")


class StoredQuantizer(NamedTuple):
    """What :func:`vqvae_fast.checkpoints.read_quantizer` makes of every format.

    Attributes:
        name: of our class.
        arguments: of its constructor.
        state: its state dict.
    """

    name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]

    def build(self, like: Tensor | None = None) -> nn.Module:
        """Construct the module and load its weights.

        Args:
            like: a tensor whose device and dtype the module gets; the CPU and float32 unless given.

        Raises:
            ValueError: the weights are not those of such a module.
            TypeError: the class does not know one of the arguments.
        """
        if self.name not in (classes := _classes()):
            raise ValueError(f"the class must be one of {', '.join(classes)}, got {self.name!r}")
        check_finite(self.state)
        self._check_counts()
        self._check_sizes()
        module = self._construct()
        if like is not None:
            module = module.to(like.device, like.dtype)
        _make_room(module, self.state)
        try:
            module.load_state_dict(self.state)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit {self}: {_line(error)}") from error
        return module

    def _construct(self) -> nn.Module:
        try:
            return _classes()[self.name](**self.arguments)
        except RuntimeError as error:  # torch's, of sizes
            raise ValueError(f"{self} cannot be made: {_line(error)}") from error

    def _check_sizes(self) -> None:
        """Compare sizes without taking memory: arguments may ask for more than any machine has."""
        with torch.device("meta"):
            sketch = self._construct()
        try:
            check_sizes(sketch, self.state)
        except ValueError as error:
            raise ValueError(f"the weights do not fit {self}: {error}") from error

    def _check_counts(self) -> None:
        """Refuse more stages than weights: each stage has some, so that others only cost time."""
        mlp = self.arguments.get("mlp_kwargs")
        for name, value in {**self.arguments, **(mlp if isinstance(mlp, dict) else {})}.items():
            if name in _COUNTS and isinstance(value, int) and value > len(self.state):
                raise ValueError(
                    f"{name} must be at most the number of weights, {len(self.state)}, got {value}"
                )

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file that :func:`vqvae_fast.load_quantizer` reads."""
        content = {"class": self.name, "arguments": self.arguments, "state": self.state}
        torch.save({"format": FORMAT, **content}, path)


def _classes() -> dict[str, Callable[..., nn.Module]]:
    """All classes that a file may ask for, by name."""
    return {**_CLASSES, **cast("dict[str, type[nn.Module]]", quantizer_classes())}


def _line(error: RuntimeError) -> str:
    """torch's message in one line, without its heading."""
    return " ".join(str(error).split("\n", 1)[-1].split())


def _make_room(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Make buffers that are None until training fills them, if the state dict has them."""
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        try:
            owner = module.get_submodule(path)
        except AttributeError:
            continue  # load_state_dict reports it
        if name in owner._buffers and owner._buffers[name] is None:
            owner._buffers[name] = torch.empty_like(tensor)
