"""Trains a VQ-VAE as the reference implementation does.

This means its loss (beta weighs the codebook term), one residual layer that is repeated, skip
connections behind the first ReLU, uniform initialisation, and no replacement of dead codes.
"""

from vqvae_fast.nn import VectorQuantizer
from vqvae_fast.recipes import Plan, Recipe, Sizes


def _plan(sizes: Sizes) -> Plan:
    return Plan(
        {"learning": "gradient"}, {"legacy": True, "shared_residual": True, "relu_skip": True}
    )


RECIPE = Recipe("trains the codes as the reference VQ-VAE does", VectorQuantizer, _plan)
