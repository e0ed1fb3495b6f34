"""A table of the GPUs whose matrix unit is known to round within the bound.

The bound of the search (docs/exactness.md, "The error of a score") allows a score to lose
:data:`ALLOWED` units for every 16 products. A unit is 2^-24 of the largest magnitude that occurs in
the sum. A GPU is served by the Triton kernels only where its matrix unit is known to lose no more.

Sources: MMA-Sim (Microsoft, https://github.com/microsoft/MMA-Sim), whose models agree with the
devices in every bit, for Ampere, Ada, Hopper, Blackwell (sm_100 and sm_120) and CDNA 3.
"""

from typing import NamedTuple

ALLOWED = 64.0


class MatrixUnit(NamedTuple):
    """A family of matrix units.

    Attributes:
        name: of the family.
        lost: units that 16 products of float16 numbers lose at most.
    """

    name: str
    lost: float


# Two steps of 8 products: each cuts 9 summands off at 2^-24 and the sum at 2^-23.
_AMPERE = MatrixUnit("ampere", 22)
# One step of 16 products: it cuts 17 summands off at 2^-25 and the sum at 2^-23.
_HOPPER = MatrixUnit("hopper", 10.5)
# Summands are cut off downwards, and sums are rounded to nearest.
_CDNA3 = MatrixUnit("cdna3", 22)

# By the major number of the compute capability. A GPU whose minor number is not among the measured
# ones (sm_87, sm_103, sm_110, sm_121) counts as its family. A larger major number is not known.
_NVIDIA = {8: _AMPERE, 9: _HOPPER, 10: _HOPPER, 11: _HOPPER, 12: _HOPPER}
# gfx90a and older flush float16's subnormals, on which the bound counts. gfx950 is in no published
# model.
_AMD = {"gfx942": _CDNA3}


def of_nvidia(major: int) -> MatrixUnit | None:
    """The matrix unit of this major compute capability; None if it is not known."""
    return _NVIDIA.get(major)


def of_amd(arch: str) -> MatrixUnit | None:
    """The matrix unit of this architecture, such as gfx942; None if it is not known."""
    return _AMD.get(arch)


def served() -> str:
    """The GPUs whose matrix unit is known, in words."""
    first, last = min(_NVIDIA), max(_NVIDIA)
    return f"compute capability {first}.0 to {last}.x and AMD's {', '.join(_AMD)}"
