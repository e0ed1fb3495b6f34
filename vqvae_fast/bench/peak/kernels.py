"""The instructions that multiply and add in registers, for each number format.

Each kernel keeps enough independent sums to hide an instruction's latency, and touches no memory.
A multiply-add counts as two operations, however many instructions it takes: AVX2 without extensions
needs three to add products of bytes into 32-bit sums.
"""

import ctypes
import platform
from typing import NamedTuple

from vqvae_fast.bench.peak.native import Loop, PeakUnavailableError, build, compiler


class Kernel(NamedTuple):
    """The instructions with which one instruction set adds products of vectors to ``sum``.

    Attributes:
        isa: the name of the set, as in VQVAE_FAST_CPU_ISA if it is one of those.
        vector_bytes: the bytes of each factor that are multiplied at once; for tiles, those of all
            256 pairs of a row and a column.
        features: the features that the processor must have, as GCC and Clang call them.
        instructions: the instructions for multiply_add.cpp, in GNU assembler, or the one for
            tiles.cpp; empty for portable.cpp.
    """

    isa: str
    vector_bytes: int
    features: tuple[str, ...] = ()
    instructions: str = ""


_TILE = 16 * 16 * 64
# These macros choose the registers for vectors of that many bytes.
REGISTERS = {
    64: ("VECTOR_BYTES=64", 'TARGET="avx512f"'),
    32: ("VECTOR_BYTES=32", 'TARGET="avx2"'),
    4: ("VECTOR_BYTES=16",),
}
# Without VNNI, products are added to sums of 32 bits in several instructions.
_PAIRS_OF_WORDS = "vpmaddwd %[x], %[x], %[scratch]; vpaddd %[scratch], %[sum], %[sum]"
_PAIRS_OF_BYTES = (
    "vpmaddubsw %[x], %[x], %[scratch]; vpmaddwd %[ones], %[scratch], %[scratch]; "
    "vpaddd %[scratch], %[sum], %[sum]"
)
_ELEMENT_BYTES = {
    "float32": 4,
    "int8": 1,
    "int16": 2,
    "bfloat16": 2,
    "amx_int8": 1,
    "amx_bfloat16": 2,
}
# Each list has the best kernel first.
KERNELS = {
    "float32": (
        Kernel("avx512", 64, ("avx512f",), "vfmadd231ps %[x], %[x], %[sum]"),
        Kernel("avx2", 32, ("avx2", "fma"), "vfmadd231ps %[x], %[x], %[sum]"),
        Kernel("portable", 4),
    ),
    "int8": (
        Kernel("avx512vnni", 64, ("avx512vnni",), "vpdpbusd %[x], %[x], %[sum]"),
        Kernel("avxvnni", 32, ("avxvnni",), "%{vex%} vpdpbusd %[x], %[x], %[sum]"),
        Kernel("avx512", 64, ("avx512bw",), _PAIRS_OF_BYTES),
        Kernel("avx2", 32, ("avx2",), _PAIRS_OF_BYTES),
    ),
    "int16": (
        Kernel("avx512vnni", 64, ("avx512vnni",), "vpdpwssd %[x], %[x], %[sum]"),
        Kernel("avxvnni", 32, ("avxvnni",), "%{vex%} vpdpwssd %[x], %[x], %[sum]"),
        Kernel("avx512", 64, ("avx512bw",), _PAIRS_OF_WORDS),
        Kernel("avx2", 32, ("avx2",), _PAIRS_OF_WORDS),
    ),
    "bfloat16": (Kernel("avx512bf16", 64, ("avx512bf16",), "vdpbf16ps %[x], %[x], %[sum]"),),
    "amx_int8": (Kernel("amx", _TILE, ("amx-tile", "amx-int8"), "tdpbssd"),),
    "amx_bfloat16": (Kernel("amx", _TILE, ("amx-tile", "amx-bf16"), "tdpbf16ps"),),
}


def float_set(isa: str) -> str:
    """Return the name of the kernel that multiplies float32 as an instruction set's search does.

    Args:
        isa: the name of the set, as in VQVAE_FAST_CPU_ISA.
    """
    isa = isa.removesuffix("-float32")
    if isa.startswith("neon"):
        return "portable"  # which compilers turn into NEON's multiply-adds
    return {"avx512vnni": "avx512", "avx512amx": "avx512", "avxvnni": "avx2"}.get(isa, isa)


def load(number_format: str, kernel: Kernel) -> Loop:
    """Compile a kernel.

    Args:
        number_format: a key of :data:`KERNELS`.
        kernel: one of its kernels.

    Raises:
        PeakUnavailableError: the compiler or the processor lacks the instructions.
    """
    library = _load(kernel)
    library.loop_sums.restype = ctypes.c_int64
    products = kernel.vector_bytes // _ELEMENT_BYTES[number_format]
    return Loop(library.loop, 2 * products * library.loop_sums())


def _load(kernel: Kernel) -> ctypes.CDLL:
    if not kernel.instructions:
        return build("portable.cpp")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise PeakUnavailableError(f"is written for x86-64, not for {platform.machine()}")
    features = "&&".join(f'__builtin_cpu_supports("{feature}")' for feature in kernel.features)
    supported = f"SUPPORTED=({features})"
    if kernel.vector_bytes == _TILE:
        lack = "this processor lacks it, or the system denies it"
        library = build("tiles.cpp", f'INSTRUCTION="{kernel.instructions}"', supported)
    else:
        lack = "this processor lacks it"
        instructions = f'INSTRUCTIONS="{kernel.instructions}"'
        registers = REGISTERS[kernel.vector_bytes]
        library = build("multiply_add.cpp", instructions, supported, *registers)
    if not library.loop_is_supported():
        raise PeakUnavailableError(lack)
    return library


def best(number_format: str) -> tuple[Kernel, Loop]:
    """Return the first kernel of a format that runs here.

    Raises:
        PeakUnavailableError: no kernel runs; the message says why for each.
    """
    compiler()  # if there is none, that is the reason for all kernels
    reasons = []
    for kernel in KERNELS[number_format]:
        try:
            return kernel, load(number_format, kernel)
        except PeakUnavailableError as error:
            reasons.append(f"{kernel.isa}: {error}")
    raise PeakUnavailableError("; ".join(reasons))


def named(number_format: str, isa: str) -> tuple[Kernel, Loop]:
    """Return the kernel of one instruction set.

    Raises:
        PeakUnavailableError: it does not run here; the message lists those that do.
    """
    compiler()
    runs = {}
    for kernel in reversed(KERNELS[number_format]):
        try:
            runs[kernel.isa] = kernel, load(number_format, kernel)
        except PeakUnavailableError:
            continue
    if isa not in runs:
        raise PeakUnavailableError(
            f"instruction set must be one of {', '.join(runs)} here, got {isa}"
        )
    return runs[isa]
