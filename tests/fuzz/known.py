"""The differences from the peer that are meant, and defects that are being mended. All are here."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Options = dict[str, Any]


class Known(NamedTuple):
    """A difference that is no finding.

    Attributes:
        why: the reason; "docs" in front of one that docs/drop-in.md gives.
        parts: a regular expression for the parts of the result that may differ.
        applies: whether it can be seen in a case, by the class's name, the constructor's arguments
            and all steps so far.
    """

    why: str
    parts: str
    applies: Callable[[str, Options, Sequence[Any]], bool]


DELIBERATE: list[Known] = []
BEING_MENDED: list[Known] = []


def reason(
    name: str, options: Options, steps: Sequence[Any], different: dict[str, str]
) -> str | None:
    """Why these differences are known; None unless every one of them is."""
    entries = [k for k in (*DELIBERATE, *BEING_MENDED) if k.applies(name, options, steps)]
    reasons = []
    for part, what in different.items():
        fitting = [k.why for k in entries if re.search(k.parts, f"{part}: {what}")]
        if not fitting:
            return None
        reasons.append(fitting[0])
    return sorted(set(reasons))[0]


def tells_near_ties(name: str, options: Options, steps: Sequence[Any]) -> bool:
    """Whether the peer's own distances say which choices of codes are a toss-up in float32."""
    by_search = name in ("VectorQuantize", "ResidualVQ")
    drawn = {"stochastic_sample_codes", "kmeans_init", "beam_size", "implicit_neural_codebook"}
    return (
        by_search
        and not drawn & options.keys()
        and not options.get("separate_codebook_per_head")
        and options.get("heads", 1) == 1
        and not any({"topk", "beam_size", "indices"} & step.arguments.keys() for step in steps)
    )


def near_tie(
    searched: Sequence[Tensor],
    theirs: dict[str, Tensor | None],
    ours: dict[str, Tensor | None],
) -> bool:
    """Whether indices differ only where the peer's float32 distances are equal but for rounding."""
    a, b = theirs.get("result indices"), ours.get("result indices")
    if a is None or b is None or a.shape != b.shape or torch.equal(a, b) or not searched:
        return False
    stages = len(searched)
    a, b = (t.reshape(-1, stages if t.shape[-1] == stages else 1) for t in (a, b))
    for row in (a != b).any(dim=1).nonzero().flatten().tolist():
        stage = int((a[row] != b[row]).nonzero()[0])
        distances = searched[stage].reshape(-1, searched[stage].shape[-1])[row]
        one, other = distances[a[row, stage]], distances[b[row, stage]]
        if (one - other).abs() > 1e-4 * (1 + one.abs()):
            return False
    return True
