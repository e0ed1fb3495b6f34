"""Checks that rows in registers stay there until the matrix unit has read them.

HGMMA, the product of sm_90, runs while the threads go on, until WARPGROUP.DEPBAR waits for it.
It may take its first factor from registers. The assembler must not reuse these before the wait;
ptxas 12.9 is known to do so (Triton's issue 11781). The check reads SASS, because the assembler
makes the mistake there. The products of the other architectures read their registers when they are
issued, or read none.
"""

import re
from collections.abc import Iterator, Sequence

from benchmarks.gpu_check.flow import reachable
from benchmarks.gpu_check.sass import Instruction, instructions

_PRODUCT = re.compile(r"HGMMA\.64x\d+x\d+\S* R\d+, R(\d+), gdesc")
_FIRST_FACTOR = 4  # registers of a thread, for every type: 64 rows of 32 bytes
_COMMIT = "gsb0"  # the last operand of the last product of a group
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)")
# No program keeps more later groups in flight than this.
_MOST_GROUPS = 8
# These instructions read their first register.
_READERS = re.compile(r"[A-Z]+SETP|FCHK|WARPSYNC|NANOSLEEP|BRX|JMX|RET|R2P|BAR|BPT")
_JUMP = re.compile(r"(BRA|BRA\.\S+|CALL\S*|WARPSYNC\.COLLECTIVE|BREAK|JMP)\s.*?(0x[0-9a-f]+)$")


def overwritten(listing: str) -> list[str]:
    """Return the instructions that write to a register that a product in flight may still read."""
    code = instructions(listing)
    successors = _successors(code)
    found: dict[int, str] = {}
    for start, product in enumerate(code):
        if not (match := _PRODUCT.match(product.text)):
            continue
        first = int(match[1])
        factor = set(range(first, first + _FIRST_FACTOR))

        # A state is an instruction behind the product, and the groups that were committed before
        # it, the product's own among them.
        def following(state: tuple[int, int]) -> Iterator[tuple[int, int]]:
            at, groups = state
            text = code[at].text
            if text.startswith("HGMMA") and text.endswith(_COMMIT):
                groups = min(groups + 1, _MOST_GROUPS)
            wait = _WAIT.match(text)
            if wait is None or groups <= int(wait[1], 16):
                yield from ((to, groups) for to in successors[at])

        for at, _groups in reachable([(start, 0)], following):
            if factor & written(code[at].text):
                found[at] = f"{code[at].text} at {code[at].address:#x}"
    return [found[at] for at in sorted(found)]


def written(text: str) -> set[int]:
    """Return the registers that an instruction writes; too many if in doubt, never too few."""
    opcode, _, operands = text.partition(" ")
    # Some instructions write a predicate before the register; PT is none.
    match = re.match(r"(?:!?U?P\w+, )*R(\d+)(?=,|$|\.)", operands.strip())
    if match is None or _READERS.match(opcode):
        return set()
    first = int(match[1])
    return set(range(first, first + _width(opcode)))


def _width(opcode: str) -> int:
    """Returns the number of registers of a result."""
    if product := re.match(r"HGMMA\.64x(\d+)x", opcode):
        return int(product[1]) // (2 if ".F32" in opcode else 4)
    if re.match(r"[HIQ]MMA", opcode) or ".128" in opcode or re.match(r"LDSM.*\.4$", opcode):
        return 4
    if re.match(r"D[A-Z]|CS2R$|.*(\.WIDE|\.64|F64|\.S64|\.U64)|LDSM.*\.2$", opcode):
        return 2
    return 1


def _successors(code: Sequence[Instruction]) -> list[list[int]]:
    """Returns where control may go from each instruction; too many places if in doubt."""
    places = {instruction.address: at for at, instruction in enumerate(code)}
    # Threads that wait for one another continue at the target of their barrier.
    meetings: dict[str, list[int]] = {}
    for instruction in code:
        if match := re.match(r"BSSY\S* (B\d+), (0x[0-9a-f]+)", instruction.text):
            meetings.setdefault(match[1], []).append(places[int(match[2], 16)])
    result = []
    for at, (_address, predicate, text) in enumerate(code):
        to = [at + 1] if at + 1 < len(code) else []
        if re.match(r"(EXIT|RET|BRA 0x|JMP 0x)", text) and not predicate:
            to = []
        if jump := _JUMP.match(text):
            to.append(places[int(jump[2], 16)])
        if match := re.match(r"BSYNC\S* (B\d+)", text):
            to += meetings.get(match[1], [])
        result.append(to)
    return result
