"""Makes a contender ready to be timed, and judges its answers before and after."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search


class InexactError(AssertionError):
    """Our own answer breaks the exactness contract, so nothing is timed."""


class FailedContenderError(RuntimeError):
    """A contender gives no answer that could be compared; the message says why."""


class Contender:
    """A prepared contender, with copies of the inputs, so that what it writes harms no other.

    Args:
        prepare: takes the inputs and returns the call, which returns indices.
        inputs: vectors and codebooks, which the contender must leave as they are.
        judge: takes indices and returns the share of wrong rows, 0 to 1, or raises ValueError for
            a tensor that is no answer.

    Attributes:
        call: the call to be timed.
        wrong: the largest share of wrong rows among the answers that were judged.

    Raises:
        FailedContenderError: ``prepare`` raised an exception or returned no call.
    """

    def __init__(
        self,
        prepare: Callable[..., Search],
        inputs: Sequence[Tensor],
        judge: Callable[[Tensor], float],
    ) -> None:
        self._inputs, self._own = inputs, [given.clone() for given in inputs]
        self._judge = judge
        self.wrong = 0.0
        try:
            self.call = prepare(*self._own)
        except Exception as error:
            raise FailedContenderError(told(error)) from error
        if not callable(self.call):
            raise FailedContenderError(
                f"prepares no call: the function must return one, got {_type_of(self.call)}"
            )

    def check(self) -> float:
        """Run the call once, judge its answer, and return its seconds.

        Raises:
            FailedContenderError: the call raised an exception, returned something else than
                indices of codes, or wrote to its inputs.
        """
        begin = time.perf_counter()
        try:
            answer = self.call()
        except Exception as error:
            raise FailedContenderError(told(error)) from error
        seconds = time.perf_counter() - begin
        if any(map(_differ, self._inputs, self._own)):
            raise FailedContenderError("wrote to its inputs")
        if not isinstance(answer, Tensor):
            raise FailedContenderError(f"must return a tensor, got {_type_of(answer)}")
        try:
            self.wrong = max(self.wrong, self._judge(answer))
        except ValueError as error:
            raise FailedContenderError(f"returned no answer: {error}") from error
        return seconds


def is_ours(name: str) -> bool:
    """Return whether the contender of that name is one of the package."""
    return name.startswith("ours")


def check_ours(contenders: Mapping[str, Contender], where: str) -> None:
    """Raise InexactError if an answer of ours was wrong ``where``; a peer's is only recorded."""
    for name, contender in contenders.items():
        if is_ours(name) and contender.wrong:
            raise InexactError(
                f"{contender.wrong:.2%} of the rows of {name!r} {where} "
                "chose a code that is not the nearest"
            )


def leaver(reasons: dict[str, str]) -> Callable[[str, Exception], None]:
    """Return a function that notes why a contender left while it was timed; ours must not."""

    def leave(name: str, error: Exception) -> None:
        if is_ours(name):
            raise error
        reasons[name] = told(error)

    return leave


def check_again(contenders: Mapping[str, Contender], where: str, reasons: dict[str, str]) -> None:
    """Judge an answer of each after the timing; write why a contender has none to ``reasons``.

    A kernel with a race, or one that writes behind its memory, may be right at first.
    """
    for name in contenders.keys() - reasons.keys():
        try:
            contenders[name].check()
        except FailedContenderError as error:
            if is_ours(name):
                raise
            reasons[name] = str(error)
    check_ours(contenders, where)


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _type_of(thing: object) -> str:
    kind = type(thing)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def told(error: Exception) -> str:
    """Return what an exception says, in one line, with the line of the contender that raised it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
        if not frame.filename.startswith("<")  # Python's own machinery of imports
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"raised {type(error).__name__}: {error}{place}".split())
