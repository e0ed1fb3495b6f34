"""Divides listed rows among a fixed number of programs; the host does not know how many there are.

An item of work is a block of rows and a part of the codes. If there are fewer blocks than programs,
several programs share the codes of a block, and the last of them to finish merges.
"""

import triton
import triton.language as tl

from vqvae_fast.backends.triton.write import NO_CODE

# Parts whose results a program reads at a time.
_MERGED = tl.constexpr(32)


@triton.jit
def blocks_and_parts(count, tiles, BLOCK_ROWS: tl.constexpr):
    """How many blocks of rows there are, and into how many parts the tiles of codes are divided."""
    blocks = tl.cdiv(count, BLOCK_ROWS)
    parts = tl.maximum(tl.num_programs(0) // tl.maximum(blocks, 1), 1)
    return blocks, tl.minimum(parts, tiles.to(tl.int32))


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of `expected` here; it sees what all others wrote."""
    tl.debug_barrier()  # every thread's writes before the one thread's release
    return tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1


@triton.jit
def share_result(
    distance, code, part_distances, part_codes, counter, part, parts, BLOCK_ROWS: tl.constexpr
):
    """Hands a part's result [R] to the program of the block that finishes last, which merges.

    part_distances, part_codes: [parts, BLOCK_ROWS], those of the block. Returns the result of all
    parts in the last program, and whether this is the last one.
    """
    finishes = parts == 1
    if parts > 1:
        mine = part * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        tl.store(part_distances + mine, distance)
        tl.store(part_codes + mine, code)
        finishes = arrives_last(counter, parts)
        if finishes:
            distance, code = merge_parts(part_distances, part_codes, parts, BLOCK_ROWS)
    return distance, code, finishes


@triton.jit
def merge_parts(distances, codes, parts, BLOCK_ROWS: tl.constexpr):
    """The nearest code of all parts and its distance, [R] each; the lowest index wins ties.

    distances, codes: [parts, BLOCK_ROWS], what each part found. They are read from L2, where other
    programs' results are, never from the cache of this multiprocessor.
    """
    lane_distance = tl.full((BLOCK_ROWS, _MERGED), float("inf"), tl.float64)
    lane_code = tl.full((BLOCK_ROWS, _MERGED), NO_CODE, tl.int64)
    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    for first in range(0, parts, _MERGED):
        part = (first + tl.arange(0, _MERGED))[None, :]
        at, mask = part * BLOCK_ROWS + rows, (rows >= 0) & (part < parts)
        distance = tl.load(distances + at, mask, other=float("inf"), cache_modifier=".cg")
        code = tl.load(codes + at, mask, other=NO_CODE, cache_modifier=".cg")
        nearer = (distance < lane_distance) | ((distance == lane_distance) & (code < lane_code))
        lane_distance = tl.where(nearer, distance, lane_distance)
        lane_code = tl.where(nearer, code, lane_code)
    return nearest_of_lanes(lane_distance, lane_code)


@triton.jit
def nearest_of_lanes(lane_distance, lane_code):
    """The nearest code of each row's lanes [R, L] and its distance; the lowest index wins ties."""
    distance = tl.min(lane_distance, axis=1)
    code = tl.min(tl.where(lane_distance == distance[:, None], lane_code, NO_CODE), axis=1)
    return distance, code
