"""Trains a codebook by moving averages of the vectors that choose its codes.

A codebook with fewer codes than a step has vectors needs no more than k-means and the replacement
of dead codes. In a larger one the average code is chosen once in many steps and lies where the
encoder put its vectors then. Such a codebook gets an encoder whose vectors lie on a sphere, and a
learning rate that falls at the end of the run, so that the codes catch up. docs/scaling.md has the
figures.
"""

from vqvae_fast.nn import VectorQuantizer
from vqvae_fast.recipes import Plan, Recipe, Sizes

# A code is dead if it gets less than this share of the vectors of an average code. The encoder
# moves fast in the first steps and leaves most of k-means' codes behind; this share alone decides
# how soon they are replaced. Measured on the photographs (K 512, decay 0.99, seed 0): a quarter has
# 474 codes in use after 250 steps and ends at 27.6 dB, a fortieth has 123 and ends at 27.4 dB. A
# decay of 0.95 was not better.
_DEAD_SHARE = 0.25
# Length of a code in a large codebook. Measured with 4096 codes that were not yet normalised:
# 16 numbers reach 27.4 dB, 64 numbers 26.2 dB.
_LARGE_DIM = 16
# The averages of a large codebook remember at least the last three vectors of each code. With
# fewer, chance alone would make codes dead; with more, the averages lag behind the encoder.
# Measured with 65536 codes, seed 0: 28.53 dB with three, 28.45 with eight, 28.30 with 32.
_VECTORS_REMEMBERED = 3
# The learning rate of a large codebook's run falls to 0 in this share of the run, at its end.
_COOLING_SHARE = 0.5


def _plan(sizes: Sizes) -> Plan:
    choices = sizes.vectors_per_step / sizes.codebook_size  # vectors of an average code in a step
    quantizer = {
        "learning": "ema",
        "decay": max(0.99, 1 - choices / _VECTORS_REMEMBERED),
        "kmeans_init": True,
        "dead_code_threshold": _DEAD_SHARE * choices,
    }
    if sizes.codebook_size <= sizes.vectors_per_step:
        return Plan(quantizer)
    # Codes of length 1 are not normalised: only their sign would be left.
    model = {"l2_norm": sizes.dim != 1}
    return Plan(quantizer, model, dim=_LARGE_DIM, cooling=_COOLING_SHARE)


RECIPE = Recipe(
    "moving averages, with k-means initialisation and replacement of dead codes",
    VectorQuantizer,
    _plan,
)
