"""Reads kernels from the assembler's results: their registers, spills and instructions."""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import sm_arch_from_capability

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = 16  # bytes


class Resources(NamedTuple):
    """One kernel: registers of a thread, bytes of stack (spills), and its instructions."""

    registers: int
    stack: int
    listing: str


def resources(cubins: Sequence[bytes], target: GPUTarget) -> list[Resources]:
    """Read the resources of kernels for one target from their binaries.

    The disassembler needs most of its time to start. So it runs once for all kernels: their code
    lies in one piece, and a listing's addresses count from the piece's begin.
    """
    codes = [_code(cubin) for cubin in cubins]
    lines = _disassembled(b"".join(codes), target)
    found, first = [], 0
    for cubin, code in zip(cubins, codes, strict=True):
        usage = _run("cuobjdump", "-res-usage", content=cubin)
        (registers,) = re.findall(r"REG:(\d+)", usage)
        (stack,) = re.findall(r"STACK:(\d+)", usage)
        last = first + len(code) // _INSTRUCTION
        found.append(Resources(int(registers), int(stack), "\n".join(lines[first:last])))
        first = last
    return found


def _disassembled(code: bytes, target: GPUTarget) -> list[str]:
    """Returns a line for each instruction."""
    architecture = sm_arch_from_capability(target.arch).replace("sm_", "SM")
    listing = _run("nvdisasm", "--binary", architecture, content=code) if code else ""
    lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/.*;", listing, re.M)
    if len(lines) * _INSTRUCTION != len(code):
        raise RuntimeError(
            f"nvdisasm must list {len(code)} bytes of code in lines of {_INSTRUCTION} each, "
            f"got {len(lines)} lines"
        )
    return lines


def _code(cubin: bytes) -> bytes:
    """Returns the instructions of the one kernel in a binary."""
    codes = [content for name, content in _sections(cubin) if name.startswith(b".text.")]
    if len(codes) != 1:
        raise ValueError(f"a binary must have one section of code, got {len(codes)}")
    return codes[0]


def _sections(elf: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the name and the content of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, of_names = struct.unpack_from("<3H", elf, 0x3A)
    # A header: name, type, flags, address, offset, size, and what is not needed here.
    headers = [struct.unpack_from("<2I4Q", elf, table + size * at) for at in range(count)]
    names = headers[of_names][4]
    for name, _type, _flags, _address, offset, length in headers:
        yield elf[names + name :].partition(b"\0")[0], elf[offset : offset + length]


def _run(tool: str, *options: str, content: bytes) -> str:
    """Runs a tool on a file of this content; returns what it says."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [str(_TOOLS / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
