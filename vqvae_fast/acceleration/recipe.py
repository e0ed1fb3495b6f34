"""How the quantizers of one class are accelerated, and which recipe serves a module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

# (original, module, *arguments) -> what original(module, *arguments) returns
Replacement = Callable[..., Any]


class Search(NamedTuple):
    """A search for nearest codes that a method of a quantizer has made.

    Attributes:
        z: [N, D], what was compared with the codes; [H, N, D] with separate books.
        codebook: [K, D], what it was compared with; [H, K, D].
        indices: [N], the codes that the method chose; [H, N].
    """

    z: Tensor
    codebook: Tensor
    indices: Tensor


def _no_reason(module: nn.Module) -> str | None:
    return None


def _no_sizes(module: nn.Module) -> str:
    return ""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the quantizers of one class are accelerated.

    Attributes:
        known: the class's name with its module's, ``"library.quantizers.Quantizer"``, so that the
            library need not be imported; or a function that recognises a module by its shape: by
            its attributes and what they are. A module of such a shape is tried beforehand
            (``example``), because a class of the same shape may compute something else.
        methods: the replacement of each method. It is called with the original function, the module
            and the arguments, so it may leave a call to ``original(module, *arguments)``.
        relies_on: other methods and properties of the class that the replacements copy or pass by.
            A subclass or an object that has its own ones, or its own ``methods``, is left alone.
        refusal: says of a module why it must be left alone; None if it need not.
        sizes: says of a module what the report shows, as "K=1024, D=8".
        observed: the method that searches, and what finds its :class:`Search` by the module, the
            result and the arguments, or None for a call that searches no stored codes or does not
            show which it chose. :func:`vqvae_fast.compare` needs it. None if the method leaves all
            searches to modules with recipes of their own.
        example: makes arguments for ``forward`` by which a module is tried: it must give what the
            original gives, in eval and in training, with the gradients. Needed with a function as
            ``known``. Of several recipes for one shape, the first that does so serves the module.
        composes_projections: whether the replacements compose the projections of a quantizer's
            stages, which rounds otherwise than the model does. Such a recipe serves only where
            :func:`vqvae_fast.accelerate` is asked for it.
    """

    known: str | Callable[[nn.Module], bool]
    methods: Mapping[str, Replacement]
    relies_on: tuple[str, ...] = ()
    refusal: Callable[[Any], str | None] = _no_reason
    sizes: Callable[[Any], str] = _no_sizes
    observed: tuple[str, Callable[..., Search | None]] | None = None
    example: Callable[[Any], tuple[Any, ...]] | None = field(default=None)
    composes_projections: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError if a module would be recognised by its shape and not tried."""
        if callable(self.known) and self.example is None:
            raise ValueError(
                "a recipe for modules of a shape needs an example, by which they are tried"
            )

    def class_of(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class, the module's own or one that it inherits, that this recipe knows."""
        if callable(self.known):
            return type(module) if self.known(module) else None
        return next((cls for cls in type(module).__mro__ if name_of(cls) == self.known), None)

    def reason_to_leave(self, module: nn.Module) -> str | None:
        """Return why a module that this recipe knows must be left alone; None if it need not."""
        missing = [name for name in self.methods if not hasattr(type(module), name)]
        if missing:
            return f"it has no {', '.join(missing)}"
        changed = self.own_methods(module)
        if changed:
            return f"it has its own {', '.join(changed)}"
        return self.refusal(module)

    def own_methods(self, module: nn.Module) -> list[str]:
        """Return which of the known class's methods a subclass or the module has replaced."""
        known = self.class_of(module)
        return [
            name
            for name in (*self.methods, *self.relies_on)
            if name in vars(module)
            or getattr(type(module), name, None) is not getattr(known, name, None)
        ]


def name_of(cls: type) -> str:
    """Return a class's name with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"
