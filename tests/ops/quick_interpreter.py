"""Spares Triton's interpreter half of its time, which it spends on what it has done before.

What a kernel computes is left alone: the results have the same bits. Only what depends on nothing
but types and shapes is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from triton import language
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Replaces parts of the interpreter while the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_the_language_once(patch)
        _keep_block_types(patch)
        _leave_equal_shapes_alone(patch)
        _keep_numpy_types(patch)
        yield


def _patch_the_language_once(patch: pytest.MonkeyPatch) -> None:
    """The interpreter puts its own functions into triton.language when a kernel begins.

    It looks through all of the module again whenever the kernel calls a function that is decorated
    as it is.
    """
    patch_language = interpreter._patch_lang

    def patch_what_is_not(fn: Any) -> Any:
        used = [value for value in fn.__globals__.values() if value in (language, language.core)]
        if any(core.is_builtin(module.load) for module in used):
            return patch_language(fn)
        return interpreter._LangPatchScope()  # of no change

    patch.setattr(interpreter, "_patch_lang", patch_what_is_not)


def _keep_block_types(patch: pytest.MonkeyPatch) -> None:
    """Each operation makes and checks a type of its result, and describes its shape three times."""
    make_type = core.block_type.__init__
    known: dict[tuple, dict[str, Any]] = {}  # attributes by name of the elements' type, and sizes
    shapes: dict[tuple, Any] = {}  # shapes of types, and shape and number of elements of tensors

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([s.value if isinstance(s, core.constexpr) else s for s in shape])
        if (element_ty.name, sizes) not in known:
            make_type(self, element_ty, shape)
            # Blocks of one shape share the object, which tells quickly that they are alike.
            self.shape, self.of_tensors = shapes.setdefault(
                sizes, (self.shape, of_tensors(self.shape, self.numel))
            )
            known[element_ty.name, sizes] = vars(self).copy()
        vars(self).update(known[element_ty.name, sizes])
        self.element_ty = element_ty

    def of_tensors(shape: Any, numel: int) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(numel)

    of_scalars = of_tensors([], 1)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tensors if type.is_block() else of_scalars

    patch.setattr(core.block_type, "__init__", block_type)
    patch.setattr(core.tensor, "__init__", tensor)


def _leave_equal_shapes_alone(patch: pytest.MonkeyPatch) -> None:
    """Before each operation on two tensors the interpreter looks for a shape that fits both."""
    broadcast, are_equal = TritonSemantic.broadcast_impl_value, core.tuple.__eq__

    def broadcast_if_they_differ(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        if lhs.shape is rhs.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def are_equal_lists(self: Any, other: Any) -> Any:
        if isinstance(other, list):
            return core.constexpr(self.values == other)
        return are_equal(self, other)

    patch.setattr(TritonSemantic, "broadcast_impl_value", broadcast_if_they_differ)
    patch.setattr(core.tuple, "__eq__", are_equal_lists)


def _keep_numpy_types(patch: pytest.MonkeyPatch) -> None:
    """A table of all types is made again for each question."""
    numpy_type = interpreter._get_np_dtype
    known: dict[str, np.dtype] = {}

    def kept(type: Any) -> np.dtype:
        scalar = type.scalar
        if scalar.name not in known:
            known[scalar.name] = numpy_type(scalar)
        return known[scalar.name]

    patch.setattr(interpreter, "_get_np_dtype", kept)
