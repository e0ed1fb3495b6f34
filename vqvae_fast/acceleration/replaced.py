"""Puts the replacements of a recipe into a module, or into a class, and takes them out again.

A module gets another class, a subclass of its own with the same name and with the replaced methods.
So ``isinstance``, the state_dict, hooks, ``forward`` methods that other libraries put into the
module, and copies of it work as before, and nothing is written into the module.
"""

import copy
import copyreg
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.fx import Proxy

from vqvae_fast.acceleration.kept import Unserved, forget
from vqvae_fast.acceleration.recipe import Recipe, Replacement

# An attribute of the class that a module is given: its original class.
_ORIGINAL = "_class_before_vqvae_fast"
# Attributes of a replaced method: the original function, and the recipe's replacement.
_REPLACES = "_replaces"
_REPLACEMENT = "_replacement"
# The attribute of a method that was put into a class. It holds what the class's own __dict__ had
# under that name before, or None if it had nothing.
_OWN = "_own"
_classes: dict[tuple[Recipe, type[nn.Module]], type[nn.Module]] = {}


def accelerated_class(recipe: Recipe, cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class with a recipe's methods: one for all modules, as compilers guard on it."""
    if (recipe, cls) not in _classes:
        _classes[recipe, cls] = class_with(methods_of(recipe, cls), cls)
    return _classes[recipe, cls]


def class_with(methods: dict[str, Callable[..., Any]], cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that a module may have in its class's place, with these methods.

    ``module.__class__ = class_with(methods, type(module))`` replaces them; :func:`restore_module`
    undoes it.
    """
    return type(
        cls.__name__,
        (cls,),
        {
            **methods,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "__deepcopy__": _deepcopy,
            "__reduce_ex__": _reduce_to_original,
            _ORIGINAL: cls,
        },
    )


def restore_module(module: nn.Module) -> None:
    """Give a module its original class back, if it has one of :func:`class_with`.

    Raises:
        RuntimeError: something has given it yet another class since, as ``fully_shard`` and
            ``torch.nn.utils.parametrize`` do.
    """
    if original_class(module) is type(module):
        return
    if _ORIGINAL not in vars(type(module)):
        raise RuntimeError(
            f"a {type(module).__name__} cannot be given its own methods back, because it has been "
            "given another class since (by fully_shard, parametrize or the like)"
        )
    module.__class__ = original_class(module)


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has without its replaced methods."""
    return getattr(type(module), _ORIGINAL, type(module))


def is_accelerated(recipe: Recipe, cls: type[nn.Module]) -> bool:
    """Return whether a class, or one that it inherits, has the replaced methods of a recipe."""
    return all(
        getattr(getattr(cls, name, None), _REPLACEMENT, None) is replacement
        for name, replacement in recipe.methods.items()
    )


def replace_in_class(recipe: Recipe, cls: type[nn.Module]) -> None:
    """Give a class replaced methods, in all its instances. :func:`restore_class` undoes it."""
    for name, method in methods_of(recipe, cls).items():
        setattr(method, _OWN, vars(cls).get(name))
        setattr(cls, name, method)


def restore_class(cls: type[nn.Module]) -> None:
    """Give a class its original methods back; those that it inherited it inherits again."""
    for name, method in list(vars(cls).items()):
        if hasattr(method, _OWN):
            own = getattr(method, _OWN)
            if own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, own)


def methods_of(recipe: Recipe, cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """Return the methods that take the place of a class's own."""
    return {
        name: _method(getattr(cls, name), replacement)
        for name, replacement in recipe.methods.items()
    }


def originals_of(recipe: Recipe, cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """Return the methods that a class, accelerated or not, had before they were replaced."""
    methods = {name: getattr(cls, name) for name in recipe.methods}
    return {name: getattr(method, _REPLACES, method) for name, method in methods.items()}


def is_replaced(module: nn.Module, name: str) -> bool:
    """Return whether a method of a module is the replacement of a recipe."""
    return hasattr(getattr(type(module), name, None), _REPLACES)


def _method(original: Callable[..., Any], replacement: Replacement) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        traced = torch.compiler.is_compiling()  # a compiler cannot trace the second question
        if traced or not _is_transformed(*args, *kwargs.values()):
            try:
                return replacement(original, self, *args, **kwargs)
            except Unserved:
                pass
        if self.training and not traced:
            forget(self)  # the original may write to the codes in a way that torch does not count
        return original(self, *args, **kwargs)

    setattr(method, _REPLACES, original)
    setattr(method, _REPLACEMENT, replacement)
    return method


def _is_transformed(*arguments: Any) -> bool:
    """Whether torch.func transforms a call or torch.fx records it: fused Functions forbid both.

    The transform may concern parameters instead of arguments.
    """
    return peek_interpreter_stack() is not None or any(
        isinstance(argument, Proxy) for argument in arguments
    )


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> Any:
    """A copy with replaced methods, too; ``__reduce_ex__`` would leave them out.

    It is made by the class's own ``__deepcopy__``, if there is one.
    """
    own = getattr(original_class(self), "__deepcopy__", None)
    if own is not None:
        copied = own(self, memo)
        if type(copied) is original_class(self):
            copied.__class__ = type(self)
        return copied
    copied = type(self).__new__(type(self))
    memo[id(self)] = copied
    copied.__dict__ = copy.deepcopy(self.__dict__, memo)
    return copied


def _reduce_to_original(self: nn.Module, protocol: Any) -> Any:
    """What pickle stores: a module of the original class, which is read without this package."""
    original = original_class(self)
    stored = object.__new__(original)
    stored.__dict__ = self.__dict__
    reduced = stored.__reduce_ex__(protocol)
    assert isinstance(reduced, tuple)
    function, arguments, *state = reduced
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        # pickle would refuse to let it make another class than the module's.
        function, arguments = copyreg._reconstructor, (original, object, None)  # type: ignore[attr-defined]
    return function, arguments, *state
