"""The table of the compiled kernels, and the conditions that they must meet."""

from collections.abc import Collection
from typing import NamedTuple

import triton

from benchmarks.gpu_check import amdgcn, cubin, finishing, matrix_inputs, ptx, sass
from benchmarks.gpu_check.cases import Case, compile_case
from benchmarks.gpu_check.offline import MAIN_TARGET, TARGETS, Launch, Specialization
from vqvae_fast.backends.triton.version import at_least

# This row (target, case, kernel, D, input) sets the bar for the scan's arithmetic instructions per
# score.
BAR = (MAIN_TARGET, "search", "scan", 64, "bfloat16")
MOST_ARITHMETIC = 2.0
# A warp may issue this many instructions for a tile of the scan, by D, on BAR's target with Triton
# 3.9. All instructions of the main loop's body count once, on any unit. A tile has 128 codes, or 64
# if D = 256.
MOST_OF_TILE = {8: 110, 64: 200, 256: 230}
# Bytes of stack that the scan may have if its loop does not touch them. A value that is written
# before the loop and read behind it costs a program two instructions; a register for it would leave
# room for half as many programs.
MOST_KEPT = 8


class Row(NamedTuple):
    """One kernel for one target, as one version of Triton compiles it.

    Attributes:
        spilled: bytes of stack, or registers on AMD's GPUs.
        local: accesses of the stack in the loops over codes.
        unfenced: products that may read shared memory without a fence (`ptx`).
        overwritten: instructions that write to a register that a product may still read
            (`matrix_inputs`).
        matrix: matrix instructions by name.
        loop: the number of instructions of the innermost loop with a product.
        group: for `settle`, the instructions of a warp for a group (finishing.py says which).
        barriers: for `exact`, the barriers in its loop over dimensions.
        arithmetic: the loop's arithmetic instructions for each score; None if a turn finishes none.
    """

    version: str
    target: str
    case: str
    dim: int
    dtype: str
    kernel: str
    warps: int
    registers: int
    spilled: int
    local: int
    shared: int
    unfenced: int
    overwritten: int
    matrix: str
    loop: int
    group: int | None
    barriers: int | None
    arithmetic: float | None


def rows(
    cases: list[Case], target_name: str, wanted: Collection[Specialization] | None = None
) -> list[Row]:
    """Return a row for every kernel that the cases launch: each once, `settle` once for each D.

    One kernel of `settle` serves several D, and its instructions depend on D. Only the wanted
    kernels are compiled, or all if that is None.
    """
    target, _ = TARGETS[target_name]
    kinds: dict[tuple[int, int | None], tuple[Case, Launch]] = {}
    for case in cases:
        for launch in compile_case(case, target, wanted):
            kind = (id(launch.compiled), case.dim if launch.name == "settle" else None)
            kinds.setdefault(kind, (case, launch))
    kernels = list(kinds.values())
    found: list[cubin.Resources] | list[None] = [None] * len(kernels)
    if target.backend == "cuda":
        found = cubin.resources([launch.compiled.asm["cubin"] for _, launch in kernels], target)
    return [
        _row(case, launch, target_name, resources)
        for (case, launch), resources in zip(kernels, found, strict=True)
    ]


def _row(case: Case, launch: Launch, target: str, found: cubin.Resources | None) -> Row:
    compiled = launch.compiled
    arithmetic = group = barriers = None
    if found is None:
        registers, spilled, matrix = amdgcn.resources(compiled.asm["amdgcn"])
        loop = local = unfenced = overwritten = 0
    else:
        main, local = sass.loops(found.listing)
        registers, spilled, loop = found.registers, found.stack, main.total()
        unfenced = ptx.unfenced_products(compiled.asm["ptx"])
        overwritten = len(matrix_inputs.overwritten(found.listing))
        matrix = {op: n for op, n in sass.opcodes(found.listing).items() if op in sass.MATRIX}
        if launch.name == "settle":
            group = finishing.group_instructions(found.listing, launch.constants, case.dim)
        if launch.name == "exact":
            barriers = finishing.barriers_over_dimensions(found.listing)
        scores = _scores_of_loop(launch)
        if main and scores:
            arithmetic = sass.arithmetic(main) / (scores / (32 * launch.num_warps))
    return Row(
        triton.__version__,
        target,
        case.name,
        case.dim,
        str(case.dtype).removeprefix("torch."),
        launch.name,
        launch.num_warps,
        registers,
        spilled,
        local,
        compiled.metadata.shared,
        unfenced,
        overwritten,
        " ".join(f"{n} {op}" for op, n in sorted(matrix.items())),
        loop,
        group,
        barriers,
        arithmetic,
    )


def _scores_of_loop(launch: Launch) -> int | None:
    """Returns the scores that a turn of the product loop finishes; None if it only adds."""
    constants = launch.constants
    if "BLOCK_N" in constants:  # flash-kmeans
        return constants["BLOCK_N"] * constants["BLOCK_K"]
    if constants.get("ONE_CHUNK"):
        return constants["BLOCK_ROWS"] * constants["BLOCK_CODES"]
    return None


def defects(row: Row) -> list[str]:
    """Return the kernel's defects in sentences; empty for a sound kernel."""
    _, most_shared = TARGETS[row.target]
    found = []
    if row.spilled > (MOST_KEPT if row.kernel == "scan" else 0):
        found.append(f"spills {row.spilled}")
    if row.local:
        found.append(f"has {row.local} accesses of its stack in its loops over codes")
    if row.shared > most_shared:
        found.append(f"asks for {row.shared} bytes of shared memory, of {most_shared}")
    if row.unfenced:
        found.append(f"has {row.unfenced} products that may read shared memory without a fence")
    if row.overwritten:
        found.append(f"has {row.overwritten} writes to registers that a product may still read")
    is_plain = row.case.startswith("plain")
    if row.kernel in ("scan", "direct", "residual") and not is_plain and not row.matrix:
        found.append("does not use the matrix unit")
    if sets_the_bar(row) and (row.arithmetic is None or row.arithmetic > MOST_ARITHMETIC):
        found.append(f"spends {row.arithmetic} arithmetic instructions a score")
    # Triton 3.5 exchanges the elements of feature maps between threads there.
    exchanges = row.case.endswith("maps") and not at_least(row.version, (3, 9))
    if (
        row.kernel == "exact"
        and row.target.startswith("sm")
        and not exchanges
        and row.barriers != 0
        and row.dim > 1  # one dimension needs no loop
    ):
        found.append(f"has {row.barriers} barriers in its loop over dimensions")
    most = finishing.MOST_OF_GROUP.get(row.dim)
    is_judged = (row.target, row.case, row.kernel) == (MAIN_TARGET, "search", "settle")
    if is_judged and row.dtype == "float32" and most and (row.group is None or row.group > most):
        found.append(f"spends {row.group} instructions a warp and group, of {most}")
    is_timed = (row.target, row.case, row.kernel) == BAR[:3] and at_least(row.version, (3, 9))
    if is_timed and row.loop > MOST_OF_TILE.get(row.dim, row.loop):
        found.append(f"spends {row.loop} instructions a tile, of {MOST_OF_TILE[row.dim]}")
    return found


def sets_the_bar(row: Row) -> bool:
    """Return whether this is the main loop that must not spend more than MOST_ARITHMETIC."""
    return (row.target, row.case, row.kernel, row.dim, row.dtype) == BAR


def missing(found: list[Row], target: str) -> list[str]:
    """Return the rows that a target's table must have but lacks, in sentences."""
    if target != MAIN_TARGET:
        return []
    lacking = []
    if not any(map(sets_the_bar, found)):
        lacking.append(f"no row sets the bar: {', '.join(map(str, BAR))}")
    for dim in finishing.MOST_OF_GROUP:
        if not any(
            (r.case, r.kernel, r.dim, r.dtype) == ("search", "settle", dim, "float32")
            for r in found
        ):
            lacking.append(f"no row shows what settle spends at D = {dim}")
    return lacking


def markdown(found: list[Row]) -> str:
    """Return the rows as a table."""
    lines = [
        "| Triton | target | call | D | input | kernel | warps | registers | spilled | in loops | "
        "shared | unfenced | overwritten | matrix instructions | loop | a group | barriers | "
        "arithmetic a score |",
        "|" + "---|" * len(Row._fields),
    ]
    for row in found:
        *cells, arithmetic = row
        shown = ["" if cell is None else str(cell) for cell in cells]
        shown.append("" if arithmetic is None else f"{arithmetic:.2f}")
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
