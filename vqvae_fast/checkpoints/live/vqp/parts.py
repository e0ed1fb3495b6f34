"""The parts of a live module: each must be as the library makes it."""

from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import attribute, unreadable
from vqvae_fast.checkpoints.live.classes import is_of, library_class, overridden

PACKAGE = "vector_quantize_pytorch"


def library_part(name: str, part: Any, kind: str) -> Any:
    """A part of a module, which must be of this class of the library.

    Raises:
        ValueError: it is of another class, or of one that overrides a method.
    """
    found = library_class(part, PACKAGE, (kind,))
    if found is None:
        where = type(part)
        raise unreadable(
            name,
            f"it must be a {kind} of {PACKAGE} 1.32, got {where.__module__}.{where.__qualname__}",
        )
    if changed := overridden(part, found):
        raise unreadable(name, f"its {', '.join(changed)} is not that of a {kind} of {PACKAGE}")
    return part


def is_function(function: Any, name: str) -> bool:
    """Whether it is the library's function of this name."""
    return getattr(function, "__qualname__", None) == name and is_of(function, PACKAGE)


def is_projection(module: nn.Module) -> bool:
    """Whether vectors are projected to the codes and back by linear layers.

    Raises:
        ValueError: something else is in their place.
    """
    parts = attribute(module, "project_in"), attribute(module, "project_out")
    kinds = {type(part) for part in parts}
    if kinds not in ({nn.Identity}, {nn.Linear}):
        raise unreadable("project_in", f"the constructor does not make such modules: {parts}")
    return kinds == {nn.Linear}


def has_layernorm(module: nn.Module) -> bool:
    """Whether a layer norm follows the linear layer that leads to the codes.

    Raises:
        ValueError: something else is there.
    """
    project_in, project_out = attribute(module, "project_in"), attribute(module, "project_out")
    if type(project_in) is not nn.Sequential:
        is_projection(module)
        return False
    usual = nn.LayerNorm(project_out.in_features) if type(project_out) is nn.Linear else None
    kinds = [type(part) for part in project_in]
    if kinds != [nn.Linear, nn.LayerNorm] or repr(project_in[1]) != repr(usual):
        raise unreadable("project_in", f"the constructor does not make such a module: {project_in}")
    return True
