"""Runs random cases, each from a seed of its own, for some time or some number of cases."""

import argparse
import collections
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Case(Protocol):
    """One random case. Its str() says what was drawn."""

    def run(self) -> str:
        """What came out, in a few words to be counted. Raises where something is wrong."""


class Fuzzer(NamedTuple):
    """A family of cases.

    Attributes:
        script: the file that runs it, for the command that repeats a case.
        draw: makes a case; the same one for the same state of the generator.
    """

    script: str
    draw: Callable[[random.Random], Case]

    def repeat(self, seed: int) -> str:
        """The command that runs this seed's case again."""
        script = Path(self.script).resolve()
        return f"python {script.relative_to(script.parents[2])} --seed {seed} --cases 1"


class Finding(NamedTuple):
    """A case in which something is wrong."""

    seed: int
    case: str
    error: Exception
    repeat: str

    def __str__(self) -> str:
        what = f"{type(self.error).__name__}: {self.error}".replace("\n", "\n  ")
        return f"seed {self.seed}: {self.case}\n  {what}\n  repeat: {self.repeat}"


@dataclass
class Result:
    """What a campaign has seen: how often each outcome, and the findings."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{count:7d}  {outcome}" for outcome, count in self.outcomes.most_common()]
        return "\n".join([*lines, f"{len(self.findings):7d}  FOUND"])


def run(
    fuzzer: Fuzzer,
    seed: int,
    *,
    seconds: float | None = None,
    cases: int | None = None,
    keep_going: bool = False,
    announce: bool = False,
) -> Result:
    """Run the cases of `seed`, `seed + 1`, ..., until the time or the number is over.

    Args:
        fuzzer: draws the cases.
        seed: of the first case.
        seconds: no case starts later; at least one runs.
        cases: no more than these.
        keep_going: go on after a finding.
        announce: print each case before it runs, for those that end the process.
    """
    result, began = Result(), time.monotonic()
    for number in _numbers(cases):
        if number and seconds is not None and time.monotonic() - began > seconds:
            break
        case = fuzzer.draw(random.Random(seed + number))
        if announce:
            print(f"seed {seed + number}: {case}", flush=True)
        try:
            result.outcomes[case.run()] += 1
        except Exception as error:
            finding = Finding(seed + number, str(case), error, fuzzer.repeat(seed + number))
            result.findings.append(finding)
            print(finding, flush=True)
            if not keep_going:
                break
    return result


def _numbers(cases: int | None) -> Iterator[int]:
    number = 0
    while cases is None or number < cases:
        yield number
        number += 1


def main(fuzzer: Fuzzer, description: str | None) -> None:
    """The command line of a fuzzer; exits with 1 if it has found something."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, help="60 unless --cases is given")
    parser.add_argument("--cases", type=int, help="stop after this many")
    parser.add_argument("--seed", type=int, help="of the first case; fresh unless given")
    parser.add_argument("--keep-going", action="store_true", help="go on after a finding")
    parser.add_argument("--announce", action="store_true", help="print each case before it runs")
    arguments: Any = parser.parse_args()
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    seconds = 60.0 if arguments.seconds is None and arguments.cases is None else arguments.seconds
    print(f"first seed: {seed}", flush=True)
    result = run(
        fuzzer,
        seed,
        seconds=seconds,
        cases=arguments.cases,
        keep_going=arguments.keep_going,
        announce=arguments.announce,
    )
    print(result)
    sys.exit(1 if result.findings else 0)
