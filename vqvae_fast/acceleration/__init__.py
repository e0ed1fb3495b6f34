"""Makes the quantizers of models that exist exact and fast, in place, and compares their codes.

:func:`accelerate` finds the quantizers that a :class:`Recipe` knows and replaces the methods that
search. A recipe for a class of another library takes a few lines::

    from vqvae_fast.acceleration import Recipe, nearest, register

    def quantize(original, module, x):  # takes the place of Quantizer.quantize
        return nearest(module, x, module.codebook.weight)

    register(Recipe("library.quantizers.Quantizer", {"quantize": quantize}))
"""

from vqvae_fast.acceleration.acceleration import Acceleration, accelerate, register
from vqvae_fast.acceleration.comparison import Comparison, compare
from vqvae_fast.acceleration.kept import Unserved, nearest, nearest_made, residual_nearest
from vqvae_fast.acceleration.recipe import Recipe, Search

__all__ = [
    "Acceleration",
    "Comparison",
    "Recipe",
    "Search",
    "Unserved",
    "accelerate",
    "compare",
    "nearest",
    "nearest_made",
    "register",
    "residual_nearest",
]
