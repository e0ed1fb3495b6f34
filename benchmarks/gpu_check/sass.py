"""What the assembler made of a kernel: registers, spills, and the instructions of its main loop."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "OMMA")
# What works on numbers in the vector units. Moves, loads, address and loop control are not among
# them: IADD3 and its like are counted all the same, as nobody can tell what they add.
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


class Resources(NamedTuple):
    """Of one kernel: registers a thread, bytes of stack (spills), and its instructions."""

    registers: int
    stack: int
    listing: str


def resources(cubin: bytes) -> Resources:
    """Reads them from the binary."""
    dump = _dump(cubin)
    (registers,) = re.findall(r"REG:(\d+)", dump)
    (stack,) = re.findall(r"STACK:(\d+)", dump)
    return Resources(int(registers), int(stack), dump)


class Loops(NamedTuple):
    """What a kernel's loops execute.

    Attributes:
        main: opcodes of the innermost loop that multiplies matrices; empty if there is none.
        local: accesses of the stack in it, or, without one, in all loops that hold no other.
    """

    main: Counter[str]
    local: int


def opcodes(listing: str) -> Counter[str]:
    """A kernel's instructions by opcode."""
    return _opcodes(text for _, text in _instructions(listing))


def loops(listing: str) -> Loops:
    """Finds them by their jumps back."""
    bodies = _bodies(listing)
    with_matrices = [body for body in bodies.values() if any(op in body for op in MATRIX)]
    main = min(with_matrices, key=lambda body: body.total(), default=Counter())
    local = sum(body["LDL"] + body["STL"] for body in ([main] if main else innermost(listing)))
    return Loops(main, local)


def innermost(listing: str) -> list[Counter[str]]:
    """The opcodes of each loop that holds no other."""
    bodies = _bodies(listing)
    return [
        body
        for (start, end), body in bodies.items()
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in bodies)
    ]


def _bodies(listing: str) -> dict[tuple[int, int], Counter[str]]:
    """The opcodes of every loop, by its first and its last address."""
    instructions = _instructions(listing)
    spans = []
    for address, text in instructions:
        jump = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            spans.append((int(jump[1], 16), address))
    return {
        (start, end): _opcodes(t for a, t in instructions if start <= a <= end)
        for start, end in spans
    }


def arithmetic(loop: Counter[str]) -> int:
    """Arithmetic instructions of a loop's body, a thread's."""
    moves = loop["IMAD.MOV"]  # a move in the guise of a multiplication
    return sum(loop[op] for op in _ARITHMETIC) + loop["IMAD"] - moves


def _dump(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(listing: str) -> list[tuple[int, str]]:
    """(address, text without its predicate) of every instruction."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S.*?);", listing, re.M)
    return [(int(address, 16), text) for address, text in found]


def _opcodes(texts) -> Counter[str]:
    """By opcode, and IMAD.MOV also on its own."""
    counts: Counter[str] = Counter()
    for text in texts:
        opcode = text.split()[0]
        counts[opcode.split(".")[0]] += 1
        if opcode.startswith("IMAD.MOV"):
            counts["IMAD.MOV"] += 1
    return counts
