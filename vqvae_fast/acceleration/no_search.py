"""Which modules look like quantizers by their name, and why some of them have no recipe."""

import re

from torch import nn

# Parts of models are called after them, too: ChameleonVQVAEEncoder, VQGANDecoder.
_LIKE_A_QUANTIZER = re.compile(r"quanti[sz]|codebook|vq(?!-?_?vae|_?gan|_?model)", re.IGNORECASE)

# The first pattern that a class's name has says why there is no nearest code to find.
_REASONS = (
    (
        re.compile(r"Gumbel"),
        "it samples a code by a Gumbel softmax over scores; it looks for no nearest code",
    ),
    (
        re.compile(r"FSQ|FiniteScalar"),
        "it rounds each number to a level (finite scalar quantization); it has no codebook",
    ),
    (
        re.compile(r"LFQ|BSQ|Look[uU]pFree|BinarySpherical"),
        "it takes the signs of numbers (lookup-free quantization); it searches no codebook",
    ),
    (
        re.compile(r"IBQ|IndexPropagation"),
        "it takes the code of the largest inner product, and learns from the scores of all codes",
    ),
    (
        re.compile(r"FlavaImageCodebook$"),
        "its codes are the largest outputs of a convolution; it looks for no nearest code",
    ),
    (
        re.compile(r"Codebooks?Head"),
        "it predicts codes from hidden states; it looks for no nearest code",
    ),
)


def is_like_a_quantizer(cls: type[nn.Module]) -> bool:
    """Return whether a class without a recipe is called like a quantizer."""
    return _LIKE_A_QUANTIZER.search(cls.__name__) is not None


def reason_without_search(cls: type[nn.Module]) -> str | None:
    """Return why quantizers of a class are left alone that search for no nearest code.

    Those of this package need no recipe, which is a reason, too. None says that none is known.
    """
    if cls.__module__.startswith("vqvae_fast.") and is_like_a_quantizer(cls):
        return "it is this package's own, which is exact and fast already (see vqvae_fast.freeze)"
    return next((reason for name, reason in _REASONS if name.search(cls.__name__)), None)
