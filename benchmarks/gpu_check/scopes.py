"""Which kernels a scope compiles for a target.

All calls together specialize the kernels in some 250 ways for each target. The brief scope has
those of a few calls, which some version of Triton has compiled badly. The usual scope adds a cover
of all values: a few specializations, among which each value that a kernel or a call can meet occurs
at least once. So a fault that depends on one value is seen for every target. A fault that depends
on a product of values may need the scope "all".
"""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu_check.cases import Case
from benchmarks.gpu_check.offline import MAIN_TARGET, TARGETS, Specialization, specialized_for

SCOPES = ("brief", "usual", "all")
# These calls (name and D, in float32) are the ones in which some version of Triton has spilled or
# failed, or needed a remedy. D = 16 gives a thread the most scores and D = 256 the most elements. A
# feature map needs an address for each element. Residual VQ and the single launch use nearly all
# registers at these D.
_BRIEF = {
    "search": (16, 64, 256),
    "search, maps": (256,),
    "residual": (16, 64, 128),
    "direct": (64,),
}
# The bar for the scan is set for the main target in bfloat16. Versions differ in whether they
# compile D = 1, but not by target.
_BRIEF_OF_MAIN = (("search", 64, torch.bfloat16), ("search, odd D", 1, torch.float32))
# The constants of a kernel that are chosen together, its configuration, count as one value.
_TILES = ("BLOCK_ROWS", "BLOCK_CODES", "BLOCK_DIM", "GROUP", "NUM_STAGES", "num_warps")
_CONFIGURATIONS = {
    "scan": _TILES,
    "rescan": _TILES,
    "residual": _TILES,
    "sum_runs": ("BLOCK_DIM", "ALIGNED"),
}
# A kernel or a call, what of it has the value, and the value.
Value = tuple[str, str, str]


def is_brief(case: Case, target: str) -> bool:
    """Return whether the brief scope has this case for a target."""
    if target == MAIN_TARGET and (case.name, case.dim, case.dtype) in _BRIEF_OF_MAIN:
        return True
    return case.dtype == torch.float32 and case.dim in _BRIEF.get(case.name, ())


def specializations(cases: Sequence[Case], target: str, scope: str) -> set[Specialization]:
    """Return what a scope compiles for a target, of all that the cases launch."""
    values: dict[Specialization, set[Value]] = {}
    brief: set[Specialization] = set()
    for case in cases:
        with specialized_for(TARGETS[target][0]) as launched:
            case.call()
        for one in launched:
            values.setdefault(one, set()).update(_values(one, case, target))
        if is_brief(case, target):
            brief.update(launched)
    if scope == "all":
        return set(values)
    if scope == "brief":
        return brief
    # The cover takes the first of several equally good choices. Each target starts at another one,
    # so the targets together compile a few more products of values.
    first = list(TARGETS).index(target) * len(values) // len(TARGETS)
    in_turn = [*list(values.items())[first:], *list(values.items())[:first]]
    return brief | _cover(dict(in_turn), brief)


def _values(one: Specialization, case: Case, target: str) -> Iterator[Value]:
    """Yields the values of a specialization that a case launches.

    A configuration counts, but for the form without the matrix unit, which serves comparison. D is
    what any call has; for the main target it is also what each kernel meets.
    """
    kernel, call, dtype, dim = one.kernel, case.name, str(case.dtype), str(case.dim)
    yield from ((kernel, name, value) for name, value in one.values)
    if kernel in _CONFIGURATIONS and not call.startswith("plain"):
        configuration = sorted(v for v in one.values if v[0] in _CONFIGURATIONS[kernel])
        yield (kernel, "configuration", str(configuration))
    yield from ((kernel, "call", call), (kernel, "input", dtype))
    yield from ((call, "input", dtype), ("any call", "D", dim))
    if target == MAIN_TARGET:
        yield (kernel, "D", dim)


def _cover(
    values: dict[Specialization, set[Value]], chosen: set[Specialization]
) -> set[Specialization]:
    """Returns what has, beside the chosen ones, every value: always the one with most new ones."""
    unseen = set().union(*values.values()).difference(*(values[one] for one in chosen))
    added = set()
    while unseen:
        best = max(values, key=lambda one: len(values[one] & unseen))
        added.add(best)
        unseen -= values[best]
    return added
