"""Reads the compiler's report about a kernel for an AMD GPU from the assembly."""

import re
from collections import Counter


def resources(assembly: str) -> tuple[int, int, Counter[str]]:
    """Return a thread's vector registers, spilled registers, and matrix instructions by name."""
    (registers,) = re.findall(r"^\s*\.vgpr_count:\s*(\d+)", assembly, re.M)
    (spilled,) = re.findall(r"^\s*\.vgpr_spill_count:\s*(\d+)", assembly, re.M)
    matrix = Counter(re.findall(r"^\s*(v_mfma_\w+)", assembly, re.M))
    return int(registers), int(spilled), matrix
