"""``python -m benchmarks.gpu_check``: compile, print the table, fail on a defect."""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import click

from benchmarks.gpu_check.cases import Case, Scope, every_case, peer_cases
from benchmarks.gpu_check.offline import MAIN_TARGET, TARGETS
from benchmarks.gpu_check.table import Row, defects, markdown, missing, rows

SCOPES = ("brief", "usual", "all")
# It has the configurations and the instructions of sm_86, so the usual scope is brief for it.
LIKE_ANOTHER = "sm_89"
Checked = tuple[list[Row], list[str]]


def cases_of(target: str, name: str) -> list[Case]:
    """Return the cases that the scope of this name has for a target."""
    scope = Scope.ALL if name == "all" else Scope.BRIEF
    if name == "usual" and target != LIKE_ANOTHER:
        scope = Scope.VARIANTS if target == MAIN_TARGET else Scope.CONFIGURATIONS
    return [case for case in every_case() if case.is_in(scope, target)]


def check(target: str, scope: str, peer: bool, searches: bool) -> Checked:
    """Return all rows of a target, and their defects. searches: leave out what is none of them."""
    warnings.simplefilter("ignore")  # Triton warns about its next version
    chosen = cases_of(target, scope)
    if searches:
        chosen = [case for case in chosen if not case.name.startswith(("sums", "plain"))]
    ours = rows(chosen, target)
    found = missing(ours, target)
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
    f"usual: every configuration, and for {MAIN_TARGET} types, masks and strides, too. "
    "all: every variant for every target.",
)
@click.option("--peer/--no-peer", default=True, show_default=True, help="flash-kmeans, too.")
@click.option("--searches", is_flag=True, help="The searches alone: no sums, no IEEE variant.")
def main(target: tuple[str, ...], jobs: int, scope: str, peer: bool, searches: bool) -> None:
    """Compile the Triton kernels for GPUs that need not be present; check the result.

    The version of Triton is the one that Python imports; PYTHONPATH may name a folder with another.
    """
    # The target with the most calls comes first and that with the fewest last, so that no worker
    # ends long after the others. No call is made here: a process that has run torch's threads
    # cannot be forked.
    order = {MAIN_TARGET: 0, LIKE_ANOTHER: 2}
    ordered = sorted(target or TARGETS, key=lambda name: order.get(name, 1))
    table: list[Row] = []
    found: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        parts = []
        for name in ordered:
            # The peer is there to be compared with, where the bars are.
            with_peer = peer and (name == MAIN_TARGET or scope == "all")
            parts.append(pool.submit(check, name, scope, with_peer, searches))
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
