"""The parts, the most valuable first, and the division of a run's time among them."""

from typing import NamedTuple

# No part may take longer, because a machine may be lent for ten minutes per command.
MOST_SECONDS = 540.0


class Part(NamedTuple):
    """A part of the run.

    Attributes:
        name: the name of its module in `benchmarks.gpu_first.parts` and in the option.
        weight: its share of the time, relative to the other parts.
        about: one sentence for the report.
        least: the seconds that it gets at least.
        interprets: a rehearsal runs it in Triton's interpreter.
    """

    name: str
    weight: float
    about: str
    least: float = 30.0
    interprets: bool = True


PARTS = (
    Part("packages", 15, "Wheels that the machine lacks, from the folder that travelled."),
    Part("versions", 15, "What the machine has."),
    Part(
        "build",
        150,
        "The extensions, compiled in place against the installed torch.",
        interprets=False,
    ),
    Part(
        "compile",
        90,
        "Every Triton kernel, compiled by as many processes as cores.",
        interprets=False,
    ),
    Part("triage", 150, "Whether each kernel runs, is right, and gives the same bits again."),
    Part("probe", 30, "The matrix unit's sums against the published models, bit for bit."),
    Part("times", 90, "The whole call and each kernel beside the floors."),
    Part("counters", 60, "Rows listed and groups measured, on Gaussian and trained data."),
    Part("sweep", 180, "Tile shapes, and the file with the fastest of them."),
    Part("peers", 120, "flash-kmeans and addmm + argmin beside the search; the goals."),
    Part("profile", 60, "Nsight Compute on two shapes."),
    Part("tests", 240, "tests/gpu, in which warnings are not errors.", interprets=False),
)
NAMES = tuple(part.name for part in PARTS)


def allotted(parts: tuple[Part, ...], seconds: float) -> float:
    """Return the seconds that the first of the parts may take of the time left for all."""
    share = parts[0].weight / sum(part.weight for part in parts)
    return min(MOST_SECONDS, seconds, max(seconds * share, parts[0].least))
