"""Checks that the matrix units see the threads' writes to shared memory.

The products of sm_90 and sm_100 read shared memory through the asynchronous proxy, while ordinary
stores and the copies of cp.async write through the generic one. The unit is sure to see a write
only after a ``fence.proxy.async``. Some versions of Triton leave the fence out, and the unit may
then multiply old contents of shared memory.

The check reads PTX, not SASS: PTX is where the rule is defined and where the compiler has to put
the fence, and its names do not change from one architecture to the next.
"""

import re
from collections.abc import Iterator

from benchmarks.gpu_check.flow import reachable

_WRITE = re.compile(
    r"st\.shared|stmatrix|cp\.async\.wait_"
)  # a copy has written when the wait for it ends
_PRODUCT = re.compile(r"wgmma\.mma_async|tcgen05\.mma|tcgen05\.cp")
_FENCE = re.compile(r"fence\.proxy\.async(?!\.global)")


def unfenced_products(ptx: str) -> int:
    """Count the products that may read shared memory without a fence since the last write."""
    instructions, labels = _parsed(ptx)

    def successors(at: int) -> Iterator[int]:
        predicate, text = instructions[at]
        branch = re.match(r"bra(?:\.uni)?\s+([$\w]+)", text)
        if branch:
            yield labels[branch[1]]
        ends = branch or text.startswith(("ret", "exit", "trap"))
        if (predicate or not ends) and at + 1 < len(instructions):
            yield at + 1

    def unfenced(at: int) -> Iterator[int]:
        return (to for to in successors(at) if not _FENCE.match(instructions[to][1]))

    writes = [at for at, (_, text) in enumerate(instructions) if _WRITE.match(text)]
    seen = reachable(writes, unfenced)
    return sum(bool(_PRODUCT.match(instructions[at][1])) for at in seen)


def _parsed(ptx: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Returns (predicate, text) of every instruction, and the positions of the labels."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in ptx.splitlines():
        line = line.split("//")[0].strip()
        if label := re.fullmatch(r"([$\w]+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"(?:\{\s*)?(@!?%\w+\s+)?([a-z].*)", line):
            instructions.append((found[1] or "", found[2]))
    return instructions, labels
