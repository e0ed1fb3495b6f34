"""Counts the instructions of the kernels that follow the scan, from their listings."""

from collections.abc import Mapping

from benchmarks.gpu_check import sass

# A warp of `settle` may execute this many instructions to measure a group of float32 input, by D.
# It measures four rows.
MOST_OF_GROUP = {64: 300, 256: 740}


def group_instructions(listing: str, constants: Mapping[str, int], dim: int) -> int | None:
    """Count the instructions with which a warp of `settle` measures a group for each of its rows.

    The number is the body of the loop over float32 elements times its turns. The loop is the first
    of the innermost ones that multiply and add float32 numbers (FFMA) and no float64 numbers
    (DFMA); a second one takes the scores of rows whose codes the first cannot tell apart. The
    reduction after it, the merge of parts and the one code in float64 are not counted. The result
    is None if there is no such loop.
    """
    bodies = [b for b in sass.innermost(listing) if b["FFMA"] and not b["DFMA"]]
    if not bodies:
        return None
    return bodies[0].total() * -(-dim // constants["GROUP_CHUNK"])


def barriers_over_dimensions(listing: str) -> int | None:
    """Count the barriers in the loops of `exact` that measure; None if it has no such loop.

    These are the innermost loops that multiply and add float64 numbers (DFMA).
    """
    bodies = [body for body in sass.innermost(listing) if body["DFMA"]]
    return sum(body["BAR"] for body in bodies) if bodies else None
