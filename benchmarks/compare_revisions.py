"""Compares this tree with a revision: ``python -m benchmarks.compare_revisions BASE``.

It builds the revision in a separate folder, and runs :mod:`benchmarks.quick_times` of this tree
with each package in turn, each time in a new process. Ratios are taken round by round. The exit
status is 1 if anything is slower than the noise explains.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from vqvae_fast.bench import tables
from vqvae_fast.bench.interleave import Timing, ratio, summarise

ROOT = Path(__file__).parents[1]
# Smaller differences do not count, even on a quiet machine.
TOLERANCE = 0.05


class CannotCompareError(RuntimeError):
    """There is no such revision, it does not build, or it does not run; the message says why."""


class Line(NamedTuple):
    """One case: the seconds of both trees, and this tree's time over the base's."""

    base: Timing
    here: Timing
    ratio: Timing

    @property
    def verdict(self) -> str:
        """Slower or faster, if three quarters of the rounds differ by more than TOLERANCE."""
        if self.ratio.q25 > 1 + TOLERANCE:
            return "slower"
        return "faster" if self.ratio.q75 < 1 / (1 + TOLERANCE) else "same"


@contextlib.contextmanager
def built(revision: str) -> Iterator[Path]:
    """Build a tree of the revision, and delete it afterwards.

    Raises:
        CannotCompareError: there is no such revision, or it does not build.
    """
    with tempfile.TemporaryDirectory(prefix="vqvae_fast_base_") as folder:
        tree = Path(folder) / "tree"
        _run(["git", "worktree", "add", "--detach", str(tree), revision], ROOT)
        try:
            print(f"building {revision} (some minutes) ...", file=sys.stderr, flush=True)
            environment = {"VQVAE_FAST_REQUIRE_EXT": "1"}
            _run([sys.executable, "setup.py", "build_ext", "--inplace"], tree, environment)
            yield tree
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)], ROOT)


def measured(tree: Path, only: str) -> dict[str, float]:
    """Time the cases whose names contain ``only`` with the package of a tree, in a new process.

    Raises:
        CannotCompareError: the script fails there, or imports another package.
    """
    script = Path(__file__).with_name("quick_times.py")
    printed = _run([sys.executable, str(script), only], tree, {"PYTHONPATH": str(tree)})
    record = json.loads(printed.splitlines()[-1])
    if not Path(record["package"]).is_relative_to(tree):
        raise CannotCompareError(f"measured {record['package']}, which is not in {tree}")
    times: dict[str, float] = record["times"]
    return times


def compare(
    base: Path, here: Path, rounds: int, only: str = ""
) -> tuple[dict[str, Line], list[str]]:
    """Compare the cases that both trees have; also name those that the base lacks.

    Args:
        base: a built tree.
        here: another built tree.
        rounds: each runs one process with each tree, in alternating order.
        only: a text that the cases' names contain.
    """
    taken: dict[Path, list[dict[str, float]]] = {base: [], here: []}
    for number in tqdm(range(rounds), desc="rounds", disable=None):
        for tree in (base, here) if number % 2 == 0 else (here, base):
            taken[tree].append(measured(tree, only))
    lines, missing = {}, []
    for name in taken[here][0]:
        if name not in taken[base][0]:
            missing.append(name)
            continue
        of_base, of_here = (summarise([r[name] for r in taken[t]]) for t in (base, here))
        lines[name] = Line(of_base, of_here, ratio(of_base, of_here))
    return lines, missing


def report(lines: Mapping[str, Line], missing: list[str]) -> str:
    """Return a table, in which a ratio below 1 is faster than the base."""
    rows = [
        (
            name,
            tables.milliseconds(line.base._asdict()),
            tables.milliseconds(line.here._asdict()),
            tables.times(line.ratio._asdict()),
            line.verdict,
        )
        for name, line in lines.items()
    ]
    text = tables.table(("case", "base, ms", "here, ms", "here / base", "verdict"), rows)
    return text + "".join(f"\nnot in the base: {name}" for name in missing)


def _changed() -> bool:
    return bool(_run(["git", "status", "--porcelain", "--untracked-files=no"], ROOT))


def _run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | dict(environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        what = " ".join(Path(part).name if os.sep in part else part for part in command)
        raise CannotCompareError(f"{what} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


def main(given: list[str] | None = None) -> int:
    """Print the table; return 1 if something became slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_revisions", description=__doc__
    )
    parser.add_argument("base", nargs="?", help="a revision, as git names it")
    parser.add_argument("--base-tree", type=Path, help="a built tree instead of a revision")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose names contain it")
    options = parser.parse_args(given)
    if (options.base is None) == (options.base_tree is None):
        parser.error("name either a revision or --base-tree")
    try:
        with contextlib.ExitStack() as stack:
            base = options.base_tree or stack.enter_context(built(options.base))
            lines, missing = compare(base.resolve(), ROOT, options.rounds, options.only)
    except CannotCompareError as error:
        print(f"benchmarks.compare_revisions: {error}", file=sys.stderr)
        return 2
    if _changed():
        print("This tree has changes that are not committed: it was measured as it is.\n")
    print(report(lines, missing))
    slower = [name for name, line in lines.items() if line.verdict == "slower"]
    if slower:
        print(f"\nslower than the base: {', '.join(slower)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
