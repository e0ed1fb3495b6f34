"""The recipes, by the library whose quantizers they know.

A recipe names a class, so that no library is imported before a model of it exists.
"""

from vqvae_fast.acceleration.known import (
    encodec_in_transformers,
    mimi_in_transformers,
    vector_quantize_pytorch,
)
from vqvae_fast.acceleration.recipe import Recipe

# The first one that knows a module serves it.
KNOWN: list[Recipe] = [
    *mimi_in_transformers.RECIPES,
    *encodec_in_transformers.RECIPES,
    *vector_quantize_pytorch.RECIPES,
]
