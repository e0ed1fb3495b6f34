"""``python -m benchmarks.gpu_check``: compile, print the table, fail on a defect."""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import click
import torch

from benchmarks.gpu_check.cases import cases, peer_cases
from benchmarks.gpu_check.offline import TARGETS
from benchmarks.gpu_check.table import Row, defects, markdown, rows


def check(target: str, peer: bool, plain: bool) -> tuple[list[Row], list[str]]:
    """All rows of a target, and what is wrong with them."""
    warnings.simplefilter("ignore")  # Triton's, of its own next version
    ours = list(rows(list(cases()), target))
    found = [f"{r.kernel}, {r.dtype}, D={r.dim}, {target}: {d}" for r in ours for d in defects(r)]
    if plain:
        ours += rows(list(cases(torch.float32)), target)
    if peer and target.startswith("sm"):
        ours += rows(list(peer_cases()), target)
    return ours, found


@click.command()
@click.option("--target", type=click.Choice(list(TARGETS)), multiple=True, default=list(TARGETS))
@click.option("--jobs", default=2, show_default=True, help="Targets at a time.")
@click.option("--peer/--no-peer", default=True, show_default=True, help="flash-kmeans, too.")
@click.option("--plain/--no-plain", default=True, show_default=True, help="The IEEE variant, too.")
def main(target: tuple[str, ...], jobs: int, peer: bool, plain: bool) -> None:
    """Compile every Triton configuration for GPUs that need not be there, and check the result."""
    table: list[Row] = []
    found: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        for part, wrong in pool.map(check, target, [peer] * len(target), [plain] * len(target)):
            table += part
            found += wrong
    click.echo(markdown(table))
    for defect in found:
        click.echo(f"defect: {defect}", err=True)
    sys.exit(bool(found))


main()
