"""``python -m benchmarks.gpu_check``: compile, print the table, fail on a defect."""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import click
import torch

from benchmarks.gpu_check.cases import (
    cases,
    direct_cases,
    peer_cases,
    residual_cases,
    shape_cases,
    sum_cases,
)
from benchmarks.gpu_check.offline import TARGETS
from benchmarks.gpu_check.table import Row, defects, markdown, missing, rows

# The sums' kernels are many and small, and the IEEE variant serves comparison only: they are
# compiled for one target, or for all with --full.
FULL_TARGET = "sm_90"
Checked = tuple[list[Row], list[str]]


def check(target: str, peer: bool, plain: bool, sums: bool, full: bool) -> Checked:
    """Return all rows of a target, and their defects."""
    warnings.simplefilter("ignore")  # Triton warns about its next version
    full = full or target == FULL_TARGET
    chosen = [*cases(), *direct_cases(), *residual_cases(), *shape_cases()]
    if sums:
        chosen += sum_cases(full)
    if plain and full:
        chosen += cases(torch.float32)
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
@click.option("--peer/--no-peer", default=True, show_default=True, help="flash-kmeans, too.")
@click.option("--plain/--no-plain", default=True, show_default=True, help="The IEEE variant, too.")
@click.option("--sums/--no-sums", default=True, show_default=True, help="Sums, too.")
@click.option("--full", is_flag=True, help="Every kernel for every target.")
def main(
    target: tuple[str, ...], jobs: int, peer: bool, plain: bool, sums: bool, full: bool
) -> None:
    """Compile every Triton configuration for GPUs that need not be present; check the result.

    The version of Triton is the one that Python imports; PYTHONPATH may name a folder with another.
    """
    # The target with the most kernels begins, so that no worker ends long after the others.
    target = target or tuple(sorted(TARGETS, key=lambda name: name != FULL_TARGET))
    table: list[Row] = []
    found: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        parts = [pool.submit(check, name, peer, plain, sums, full) for name in target]
        for part in parts:
            rows_of_target, wrong = part.result()
            table += rows_of_target
            found += wrong
    click.echo(markdown(table))
    for defect in found:
        click.echo(f"defect: {defect}", err=True)
    sys.exit(bool(found))


main()
