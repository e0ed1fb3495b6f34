"""Which tile sizes a search uses: a table, small enough to compile and check as a whole."""

from typing import NamedTuple

import torch
import triton

from vqvae_fast import settings
from vqvae_fast.backends.triton.tiles import tuned
from vqvae_fast.backends.triton.version import at_least, leaves_out_fence


class Configuration(NamedTuple):
    """The launch parameters of one search kernel.

    Attributes:
        block_rows: rows of z that a program holds.
        block_codes: codes of a tile.
        block_dim: elements of a row that are multiplied at a time; D is padded to a multiple.
        group: codes of a tile that share a slot, and are measured together.
        num_warps: warps of a program.
        num_stages: tiles of the codebook on their way from memory.
    """

    block_rows: int
    block_codes: int
    block_dim: int
    group: int
    num_warps: int
    num_stages: int


class SupportConfiguration(NamedTuple):
    """The launch parameters of the kernels around the scan.

    Attributes:
        prepare_codes: codes that a program packs.
        settle_rows: rows that a program settles.
        settle_warps: warps of such a program.
        settle_chunk: elements at a time of a row and all codes of a group, in `settle`.
        recheck_rows: rows in doubt that a program measures together.
        rescan_rows: listed rows whose scores a program takes together.
        group_chunk: elements at a time of a row and all codes of a group, in these two.
        exact_rows: listed rows that a program measures together.
        exact_codes: codes that they are measured against at a time.
        chunk: elements at a time of a row and one code.
        parts: parts of the codes that `settle` and `recheck` compare at a time.
    """

    prepare_codes: int
    settle_rows: int
    settle_warps: int
    settle_chunk: int
    recheck_rows: int
    rescan_rows: int
    group_chunk: int
    exact_rows: int
    exact_codes: int
    chunk: int
    parts: int


# One warp settles its rows without waiting for others: on an H200 that takes 35 us for 65536 rows
# at D = 64 where 16 rows of four warps take 38, and 36 instead of 62 at D = 8 (30 in chunks of 8).
_SUPPORT = SupportConfiguration(
    prepare_codes=32,
    settle_rows=4,
    settle_warps=1,
    settle_chunk=16,
    recheck_rows=8,
    rescan_rows=16,
    group_chunk=8,
    exact_rows=16,
    exact_codes=32,
    chunk=32,
    parts=16,
)
# Short rows have no second chunk, and less of the first one is masked.
_SHORT_ROW = 8
_SUPPORT_SHORT = _SUPPORT._replace(settle_chunk=8, chunk=8)
# A thread packs more elements of a long code, and cannot hold those of many codes.
_LONG_ROW = 128
_SUPPORT_LONG = _SUPPORT._replace(prepare_codes=16)
# For elements that cannot be read several at a time: fewer loads leave registers for addresses.
_SUPPORT_ODD = _SUPPORT._replace(prepare_codes=16, settle_chunk=8, chunk=8)
# The interpreter takes as long for a small block as for a large one.
_SUPPORT_INTERPRETED = SupportConfiguration(
    prepare_codes=2048,
    settle_rows=128,
    settle_warps=4,
    settle_chunk=32,
    recheck_rows=64,
    rescan_rows=64,
    group_chunk=32,
    exact_rows=16,
    exact_codes=256,
    chunk=32,
    parts=16,
)


def support_configuration(dim: int, aligned: bool) -> SupportConfiguration:
    """The configuration of the kernels around the scan.

    Args:
        dim: D, the length of a vector.
        aligned: whether rows and codes lie at multiples of 16 elements.
    """
    if triton.knobs.runtime.interpret:
        return _SUPPORT_INTERPRETED
    if dim <= _SHORT_ROW:
        return _SUPPORT_SHORT
    if not aligned:
        return _SUPPORT_ODD
    return _SUPPORT_LONG if dim > _LONG_ROW else _SUPPORT


# All codes come through L2 for each block of rows: at full speed that is 4096 / block_rows bytes a
# clock and SM, of about 30 that an H100 has. So a block has 128 rows. An SM has two programs if
# registers and shared memory allow it: one multiplies while the other compares. If D is large, the
# product takes longer than the comparisons; smaller groups then leave less to measure.
_FLOAT16 = {
    16: Configuration(128, 128, 16, 8, 8, 3),
    32: Configuration(128, 128, 32, 8, 8, 3),
    64: Configuration(128, 128, 64, 8, 8, 3),
    128: Configuration(128, 128, 128, 4, 8, 2),
    256: Configuration(128, 64, 256, 4, 8, 3),
}
# Longer rows are read in pieces, again for every tile.
_FLOAT16_PIECES = Configuration(128, 128, 32, 8, 8, 3)
# These use fused multiply-adds instead of the matrix unit, for comparison.
_FLOAT32 = {
    16: Configuration(64, 64, 16, 8, 4, 2),
    32: Configuration(64, 64, 32, 8, 4, 2),
}
_FLOAT32_PIECES = Configuration(64, 32, 16, 8, 4, 3)

# NVIDIA's architectures with room for 48 warps an SM, not 64.
FEWER_WARPS = (86, 87, 89)
# KiB of shared memory that a program may have, by architecture; all others have 99.
_SHARED_MEMORY = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227, "gfx942": 64}


def configuration(dim: int, dtype: torch.dtype) -> Configuration:
    """The configuration for rows of ``dim`` elements and packed codes of a dtype."""
    return _fenced(_fitting(dim, dtype))


def _fitting(dim: int, dtype: torch.dtype) -> Configuration:
    table, pieces = _tables(dtype)
    block = next((block for block in sorted(table) if dim <= block), None)
    if block is None:
        return pieces
    if triton.knobs.runtime.interpret:
        return tuned(table[block], "interpreter", dtype)
    arch = triton.runtime.driver.active.get_current_target().arch
    config = table[block]
    if arch in (80, *FEWER_WARPS) and block == 16:  # the accumulator of 128 codes would spill
        config = config._replace(block_codes=64)
    if arch in FEWER_WARPS and dtype == torch.float32:
        config = config._replace(num_stages=1)  # two stages' addresses would spill
    config = tuned(config, arch, dtype)
    limit = _SHARED_MEMORY.get(arch, 99) * 1024
    for stages in range(config.num_stages, 0, -1):
        if _shared_memory(config._replace(num_stages=stages), dtype) <= limit:
            return config._replace(num_stages=stages)
    return pieces


# A float32 number comes in three pieces of float16.
_START_COLUMNS = 3


def columns_for_start(config: Configuration, dim: int, dtype: torch.dtype) -> int:
    """Columns behind D that hold the start of a code's score in the product, 0 if none is free."""
    fits = dtype == torch.float16 and dim + _START_COLUMNS <= config.block_dim
    return _START_COLUMNS if fits else 0


def copies_of_starts(config: Configuration) -> int:
    """How many copies of the starts of a tile's scores a program loads: one for each thread.

    Triton 3.5 and 3.6 treat a load of fewer elements than threads as cheap and let every thread
    fetch all that it needs by itself, in 32 copies of four bytes. Every version loads as many
    elements as threads together.
    """
    return min(max(1, 32 * config.num_warps // config.block_codes), config.block_rows)


# A block of rows goes through all stages, so there are few blocks: a block has 64 rows. With these
# sizes contiguous rows spill on none of sm_80, sm_90, sm_100 and gfx942 (gpu_check).
_RESIDUAL = {
    16: Configuration(64, 256, 16, 8, 4, 2),
    32: Configuration(64, 128, 32, 8, 4, 3),
    64: Configuration(64, 128, 64, 8, 4, 3),
    128: Configuration(64, 64, 128, 8, 4, 3),
}


def residual_configuration(dim: int) -> Configuration | None:
    """The configuration of all stages in one launch, None for rows that are too long."""
    config = next((_RESIDUAL[block] for block in residual_dims() if dim <= block), None)
    return config and _fenced(_unspilled(config))


# (architecture, D) for which Triton spills unless a tile has half as many codes; and the same of
# versions before 3.9.
_SPILLS = ((100, 16),)
_SPILLED = ((80, 64), (86, 128), (89, 128), (120, 128))


def _unspilled(config: Configuration) -> Configuration:
    if triton.knobs.runtime.interpret:
        return config
    arch = triton.runtime.driver.active.get_current_target().arch
    spills = _SPILLS if at_least(triton.__version__, (3, 9)) else _SPILLS + _SPILLED
    if (arch, config.block_dim) not in spills:
        return config
    return config._replace(block_codes=config.block_codes // 2)


def _fenced(config: Configuration) -> Configuration:
    """The configuration, without asynchronous copies where Triton leaves out the fence for them.

    With one stage a tile goes through registers into shared memory, and every version of Triton
    fences that (gpu_check). Of 256 codes at a time, those registers would be too many.
    """
    if triton.knobs.runtime.interpret or settings.current.unfenced_copies:
        return config
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda" or not leaves_out_fence(triton.__version__, target.arch // 10):
        return config
    return config._replace(block_codes=min(config.block_codes, 128), num_stages=1)


def residual_dims() -> list[int]:
    """The largest D of each configuration for all stages."""
    return sorted(_RESIDUAL)


def registers(most: int, archs: tuple[int, ...] | None = None) -> dict[str, int]:
    """The launch option with which a thread takes the registers that it needs, of ``most``.

    NVIDIA's assembler does not know how many programs an SM will have. By default it puts values on
    the stack if that makes room for one more. archs: the option is given on these only.
    """
    if triton.knobs.runtime.interpret:
        return {}
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda" or (archs is not None and target.arch not in archs):
        return {}
    return {"maxnreg": most}


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has."""
    if device.type == "cpu":  # in the interpreter a few are enough to have several programs
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def block_dims(dtype: torch.dtype) -> list[int]:
    """The largest D of each configuration whose rows are in one piece; longer ones share one."""
    return list(_tables(dtype)[0])


def _tables(dtype: torch.dtype) -> tuple[dict[int, Configuration], Configuration]:
    if dtype == torch.float16:
        return _FLOAT16, _FLOAT16_PIECES
    return _FLOAT32, _FLOAT32_PIECES


def _shared_memory(config: Configuration, dtype: torch.dtype) -> int:
    """Bytes of the rows, the tiles that are being loaded with their biases, and a little more."""
    row = config.block_dim * dtype.itemsize
    tiles = config.num_stages * config.block_codes * (row + 4)
    return config.block_rows * row + tiles + 1024
