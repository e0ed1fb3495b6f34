"""The choice of a search's form: six kernels, or a single one for little work.

A model of an H100 makes the choice. In microseconds:

    six kernels    41 at least: a fill and six launches of some 3 each, and what each must load
                   before it begins. Then 3.4e-7 a score at D <= 64, twice that at D = 128.
    one launch     3 to launch; then for each wave of programs, one on each multiprocessor, 3 until
                   the rows and the scale are known, 1.2 for each tile of at most 8192 elements of
                   the codebook (0.5 until it has come from L2, 0.7 to pack and multiply it: 587
                   instructions of 8 warps), and 4 to measure and write.
    codes shared   5 more: the counters are filled with zeros in a launch of their own, and the
                   last program of a block of rows merges the results of all.

At K = 1024 and D = 64 one launch takes 20 us up to N = 2112 against 42, and 36 against 43 up to
twice that; at N = 16, K = 8192 it takes 17 us, with the codes shared among 64 programs. An H200
took 16 us for N = 256, where the model says 16, and 23 for N = 2048, where it says 20. The other
numbers have not been checked on a GPU.
"""

from typing import Literal, NamedTuple

import torch
import triton

from vqvae_fast.backends.triton.direct import DIRECT_TILES

Form = Literal["filter", "direct"]

_ROWS = 16
_WARPS = 8
_CHUNK = 32
# Codes of a tile by D, padded: at 128 half as many, so that a thread has as many elements. At 256
# every choice spills.
_CODES = {16: 128, 32: 128, 64: 128, 128: 64}

# The model, microseconds.
_LAUNCH, _START, _TILE, _END, _SHARE = 3.0, 3.0, 1.2, 4.0, 5.0
_SIX_KERNELS, _SCORE = 41.0, 3.4e-7


class DirectForm(NamedTuple):
    """How the one launch divides a search.

    Attributes:
        block_rows: rows of a program.
        block_codes: codes of a tile.
        block_dim: D, padded.
        row_blocks: blocks of rows.
        parts: parts of the codes.
        part_codes: codes of each part, a multiple of block_codes.
        chunk: elements of a candidate that are measured at a time.
        num_stages: tiles of the codebook on their way from memory.
        num_warps: warps of a program.
    """

    block_rows: int
    block_codes: int
    block_dim: int
    row_blocks: int
    parts: int
    part_codes: int
    chunk: int
    num_stages: int
    num_warps: int


def direct_form(
    num_rows: int,
    num_codes: int,
    dim: int,
    heads: int,
    aligned: tuple[bool, bool],
    multiprocessors: int,
    form: Form | None,
) -> DirectForm | None:
    """How a search is done in one launch, None where it takes six kernels.

    Args:
        num_rows: of each book.
        num_codes: of each book.
        dim: D, the length of a vector.
        heads: the number of books.
        aligned: whether codes, and whether rows, can be read several elements at a time.
        multiprocessors: those of the device.
        form: "filter" or "direct" overrides the model; rows of more than 128 elements, and of
            more than 64 in feature maps, are filtered all the same.
    """
    block_dim = next((block for block in _CODES if dim <= block), None)
    if block_dim is None or form == "filter":
        return None
    # Tensors that are read one element at a time need registers for their addresses: fewer codes
    # leave enough of them, and the widest rows leave none.
    codes_aligned, rows_aligned = aligned
    if block_dim == max(_CODES) and codes_aligned and not rows_aligned:
        return None
    block_codes = max(16, _codes_of_tile(block_dim) // (1 if codes_aligned else 4))
    tiles = triton.cdiv(num_codes, block_codes)
    row_blocks = triton.cdiv(num_rows, _ROWS)
    blocks = row_blocks * heads
    least_parts = triton.cdiv(tiles, DIRECT_TILES.value)
    most_parts = max(least_parts, min(tiles, multiprocessors // blocks))

    def time(parts: int) -> float:
        waves = triton.cdiv(blocks * parts, multiprocessors)
        wave = _START + triton.cdiv(tiles, parts) * _TILE + _END
        return float(_LAUNCH + waves * wave + (_SHARE if parts > 1 else 0))

    parts = min(least_parts, most_parts, key=time)
    scores = heads * num_rows * num_codes
    if form is None and time(parts) > _SIX_KERNELS + _SCORE * scores * max(1, block_dim / 64):
        return None
    part_tiles = triton.cdiv(tiles, parts)
    return DirectForm(
        _ROWS,
        block_codes,
        block_dim,
        row_blocks,
        triton.cdiv(tiles, part_tiles),  # no part is empty
        part_tiles * block_codes,
        min(block_dim, _CHUNK),
        2 if codes_aligned else 1,
        _WARPS,
    )


def direct_dims() -> list[int]:
    """The largest D of each width of rows that one launch searches."""
    return list(_CODES)


def _codes_of_tile(block_dim: int) -> int:
    """Codes of a tile; on sm_120, which spills with 128 of them at D = 64, half as many there."""
    codes = _CODES[block_dim]
    if triton.knobs.runtime.interpret or block_dim != 64:
        return codes
    return codes // 2 if triton.runtime.driver.active.get_current_target().arch == 120 else codes


def can_be_direct(dtype: torch.dtype, packed_dtype: torch.dtype) -> bool:
    """Whether the one launch serves these types: it multiplies in float16 alone."""
    return dtype != torch.float64 and packed_dtype == torch.float16
