"""A quantizer at rest: the name of its class, the arguments that build it, its weights."""

from importlib import import_module
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FORMAT = "vqvae_fast quantizer 1"

# Our classes and where they live: the only names that a file may ask for.
_MODULES = {
    "VectorQuantizer": "vector_quantizer",
    "VectorQuantize": "vector_quantize",
    "ResidualVQ": "residual_vq",
    "GroupedResidualVQ": "grouped_residual_vq",
    "SplitResidualVQ": "split_residual_vq",
    "SimVQ": "sim_vq",
    "ResidualSimVQ": "residual_sim_vq",
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
        if self.name not in _MODULES:
            raise ValueError(f"the class must be one of {', '.join(_MODULES)}, got {self.name!r}")
        module_name = f"vqvae_fast.nn.{_MODULES[self.name]}"
        module: nn.Module = getattr(import_module(module_name), self.name)(**self.arguments)
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
