"""A quantizer at rest: the name of its class, the arguments that build it, its weights."""

from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqvae_fast import nn as quantizers

FORMAT = "vqvae_fast quantizer 1"

# The only classes that a file may ask for.
_CLASSES: dict[str, type[nn.Module]] = {
    quantizer.__name__: quantizer
    for quantizer in (
        quantizers.VectorQuantizer,
        quantizers.VectorQuantize,
        quantizers.ResidualVQ,
        quantizers.GroupedResidualVQ,
        quantizers.SplitResidualVQ,
        quantizers.SimVQ,
        quantizers.ResidualSimVQ,
    )
}


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

    def build(self) -> nn.Module:
        """Construct the module and load its weights.

        Raises:
            ValueError: the weights are not those of such a module.
            TypeError: the class does not know one of the arguments.
        """
        if self.name not in _CLASSES:
            raise ValueError(f"the class must be one of {', '.join(_CLASSES)}, got {self.name!r}")
        module = _CLASSES[self.name](**self.arguments)
        _make_room(module, self.state)
        try:
            module.load_state_dict(self.state)
        except RuntimeError as error:
            arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
            problem = " ".join(str(error).split("\n", 1)[-1].split())
            raise ValueError(
                f"the weights do not fit {self.name}({arguments}): {problem}"
            ) from error
        return module

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file that :func:`vqvae_fast.load_quantizer` reads."""
        content = {"class": self.name, "arguments": self.arguments, "state": self.state}
        torch.save({"format": FORMAT, **content}, path)


def _make_room(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Some buffers are None until training fills them; a state dict may bring them filled."""
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        try:
            owner = module.get_submodule(path)
        except AttributeError:
            continue  # load_state_dict will tell
        if name in owner._buffers and owner._buffers[name] is None:
            owner._buffers[name] = torch.empty_like(tensor)
