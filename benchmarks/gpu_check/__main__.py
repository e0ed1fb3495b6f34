"""``python -m benchmarks.gpu_check``: compile, print the table, fail on a defect."""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import click

from benchmarks.gpu_check.cases import every_case, peer_cases
from benchmarks.gpu_check.offline import MAIN_TARGET, TARGETS
from benchmarks.gpu_check.scopes import SCOPES, specializations
from benchmarks.gpu_check.table import Row, defects, markdown, missing, rows

Checked = tuple[list[Row], list[str]]


def check(target: str, scope: str, peer: bool, searches: bool, kernels: tuple[str, ...]) -> Checked:
    """Return all rows of a target, and their defects.

    Args:
        target: its name.
        scope: its name.
        peer: whether there are rows of flash-kmeans.
        searches: whether sums and searches without the matrix unit are left out.
        kernels: the only ones that are compiled; all if there are none.
    """
    warnings.simplefilter("ignore")  # Triton warns about its next version
    cases = list(every_case())
    if searches:
        cases = [case for case in cases if not case.name.startswith(("sums", "plain"))]
    wanted = specializations(cases, target, scope)
    if kernels:
        wanted = {one for one in wanted if one.kernel in kernels}
    ours = rows(cases, target, wanted)
    found = [] if kernels else missing(ours, target)
    for row in ours:
        what = f"{row.case}: {row.kernel}, {row.dtype}, D={row.dim}, {target}, {row.version}"
        found += [f"{what}: {defect}" for defect in defects(row)]
    if peer and target.startswith("sm"):
        ours += rows(list(peer_cases()), target)
    return ours, found


@click.command()
@click.option("--target", type=click.Choice(list(TARGETS)), multiple=True)
@click.option("--jobs", default=2, show_default=True, help="Targets at a time.")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="usual",
    show_default=True,
    help="brief: each kernel of the searches for every target, and what some version of Triton has "
    "failed at. "
    "usual: for every target also each type, layout, constant and width at least once. "
    "all: every variant for every target.",
)
@click.option("--peer/--no-peer", default=True, show_default=True, help="flash-kmeans, too.")
@click.option("--searches", is_flag=True, help="The searches alone: no sums, no IEEE variant.")
@click.option("--kernel", multiple=True, help="This kernel alone, such as scan or sum_runs.")
def main(
    target: tuple[str, ...],
    jobs: int,
    scope: str,
    peer: bool,
    searches: bool,
    kernel: tuple[str, ...],
) -> None:
    """Compile the Triton kernels for GPUs that need not be present; check the result.

    The version of Triton is the one that Python imports; PYTHONPATH may name a folder with another.
    """
    # The target with the most kernels comes first, so that no worker ends long after the others. No
    # call is made here: a process that has run torch's threads cannot be forked.
    ordered = sorted(target or TARGETS, key=lambda name: name != MAIN_TARGET)
    table: list[Row] = []
    found: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        parts = []
        for name in ordered:
            # The peer is there to be compared with, where the bars are.
            with_peer = peer and (name == MAIN_TARGET or scope == "all")
            parts.append(pool.submit(check, name, scope, with_peer, searches, kernel))
        for part in parts:
            rows_of_target, wrong = part.result()
            table += rows_of_target
            found += wrong
    click.echo(markdown(table))
    for defect in found:
        click.echo(f"defect: {defect}", err=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
