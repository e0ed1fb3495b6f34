"""Reads a kernel's main loop and its other loops from the listing of its instructions."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "OMMA")
# These instructions compute in the vector units. Moves, loads and jumps are not among them.
# Additions of integers are, although some count a loop or form an address, because a listing does
# not distinguish these.
_ARITHMETIC = [
    "FADD",
    "FMUL",
    "FFMA",
    "FFMA2",
    "FMNMX",
    "FMNMX3",
    "FSETP",
    "FSEL",
    "FSET",
    "FADD2",
    "FMUL2",
    "IADD3",
    "IADD",
    "IMAD",
    "VIADD",
    "IMNMX",
    "VIMNMX",
    "VIMNMX3",
    "ISETP",
    "SEL",
    "LOP3",
    "LOP",
    "SHF",
    "SHL",
    "SHR",
    "LEA",
    "PRMT",
    "IABS",
    "I2F",
    "F2I",
    "HADD2",
    "HMUL2",
    "HFMA2",
    "HMNMX2",
    "HSETP2",
    "F2F",
    "F2FP",
    "MUFU",
    "DADD",
    "DMUL",
    "DFMA",
    "DSETP",
]
# The assembler writes some moves as a product with the zero register, for a unit that is idle. If a
# minus sign precedes the last register, the instruction negates and is no move.
_MOVE = re.compile(r"(IMAD\.(MOV\S*|U32) U?R\w+, RZ, RZ, (?!-R)|HFMA2\S* R\d+, -RZ, RZ, )")


class Instruction(NamedTuple):
    """A line of a listing.

    Attributes:
        address: the address in the kernel.
        predicate: the condition under which it runs, with its @; empty if it always runs.
        text: the rest of the line.
    """

    address: int
    predicate: str
    text: str


@lru_cache(maxsize=1)  # one listing is asked for many things
def instructions(listing: str) -> tuple[Instruction, ...]:
    """Return every instruction, in order."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?(\S.*?)\s*;", listing, re.M)
    return tuple(
        Instruction(int(address, 16), predicate, text) for address, predicate, text in found
    )


class Loops(NamedTuple):
    """The instructions that a kernel's loops execute.

    Attributes:
        main: opcodes of the innermost loop that multiplies matrices; empty if there is none.
        local: accesses of the stack in that loop, or, if there is none, in all loops that contain
            no other.
    """

    main: Counter[str]
    local: int


def opcodes(listing: str) -> Counter[str]:
    """Count a kernel's instructions by opcode."""
    return _opcodes(instruction.text for instruction in instructions(listing))


def loops(listing: str) -> Loops:
    """Find the loops by their jumps back."""
    bodies = _bodies(listing)
    with_matrices = [body for body in bodies.values() if any(op in body for op in MATRIX)]
    main = min(with_matrices, key=lambda body: body.total(), default=Counter())
    local = sum(body["LDL"] + body["STL"] for body in ([main] if main else innermost(listing)))
    return Loops(main, local)


def innermost(listing: str) -> list[Counter[str]]:
    """Return the opcodes of each loop that contains no other, in the order of their addresses."""
    bodies = _bodies(listing)
    return [
        body
        for (start, end), body in sorted(bodies.items(), key=lambda loop: loop[0])
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in bodies)
    ]


def _bodies(listing: str) -> dict[tuple[int, int], Counter[str]]:
    """Returns the opcodes of every loop, by its first and its last address."""
    found = instructions(listing)
    spans = []
    for address, _predicate, text in found:
        jump = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            spans.append((int(jump[1], 16), address))
    return {
        (start, end): _opcodes(i.text for i in found if start <= i.address <= end)
        for start, end in spans
    }


def arithmetic(loop: Counter[str]) -> int:
    """Count the arithmetic instructions of a thread in a loop's body."""
    return sum(loop[op] for op in _ARITHMETIC)


def _opcodes(texts: Iterable[str]) -> Counter[str]:
    """Counts instructions by opcode without modifiers; every move is a MOV."""
    return Counter("MOV" if _MOVE.match(text) else re.split(r"[.\s]", text)[0] for text in texts)
