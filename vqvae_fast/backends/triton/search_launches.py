"""The launches of a search: in one kernel, in six, or in the exact kernel alone."""

from typing import NamedTuple

import torch
import triton

from vqvae_fast.backends.triton.configurations import (
    SupportConfiguration,
    configuration,
    copies_of_starts,
    registers,
    support_configuration,
)
from vqvae_fast.backends.triton.direct import direct_kernel
from vqvae_fast.backends.triton.exact import exact_kernel
from vqvae_fast.backends.triton.forms import DirectForm
from vqvae_fast.backends.triton.launch import Plan, Pointer
from vqvae_fast.backends.triton.packed_form import PackedForm
from vqvae_fast.backends.triton.prepare import ROUNDING, prepare
from vqvae_fast.backends.triton.recheck import recheck_kernel
from vqvae_fast.backends.triton.rescan import rescan_kernel
from vqvae_fast.backends.triton.rows import widest_alignment
from vqvae_fast.backends.triton.scan import TILES_PER_PART, scan_kernel
from vqvae_fast.backends.triton.search_operands import SearchOperands
from vqvae_fast.backends.triton.settle import settle_kernel

# The bound holds for rows up to this length; longer ones are measured in full.
LONGEST_ROW = 1 << 16
# With fewer programs an SM than this, the codes of a block of rows are divided. No part has fewer
# tiles than this, because its beginning and end would take longer than the tiles.
_PROGRAMS_PER_SM = 2
_LEAST_TILES = 4
# Programs an SM, of all books together, among which rows in doubt and listed rows are divided. Of
# `rescan` an SM holds one at a time, and a part of the codes for each of more programs would be
# over before it has paid for its beginning and its end.
_LISTED_PROGRAMS_PER_SM = 4
_RESCAN_PROGRAMS_PER_SM = 1
# Registers that a thread may take. An SM has 65536, which is enough for one program of `rescan`,
# three of `recheck` or `exact`, or 25 warps of `settle`.
_RESCAN_REGISTERS = 255
_EXACT_REGISTERS = 168
_RECHECK_REGISTERS = 168
_SETTLE_REGISTERS = 80
# All that a thread of one program a multiprocessor can have. The scan without the matrix unit takes
# them, too.
_DIRECT_REGISTERS = 255
_PLAIN_REGISTERS = 255
# Rows up to this length that lie together are packed in registers; others in memory, of so many
# elements at most, where the matrix unit's tiles are read without strides and masks.
_LONGEST_DIRECT = 128
_PACKED_ELEMENTS = 1 << 25
# A slab of rows has at most so many pairs of a row and a part of the codes. Each pair takes 80
# bytes, or 144 for 65 to 128 dimensions, so the memory of a search stays O(N + K).
_ENTRIES = 1 << 18


def plan_direct(plan: Plan, search: SearchOperands, form: DirectForm) -> None:
    """The search in one launch, and a fill of counters if programs share the codes."""
    heads = search.codebook.shape[0]
    shared = form.parts > 1
    blocks = (heads, form.row_blocks) if shared else (0,)
    parts = (*blocks, form.parts, form.block_rows)
    plan.launch(
        direct_kernel,
        (form.row_blocks, form.parts, heads),
        *search.z_arguments,
        *search.result_arguments,
        form.part_codes,
        plan.zeros(blocks, torch.int32),
        plan.empty(parts, torch.float64),
        plan.empty(parts, torch.int64),
        ALIGNED=search.row_alignment,
        BOOK_ALIGNED=search.book_alignment,
        QUANTIZE=search.quantizes,
        SHARED=shared,
        BLOCK_ROWS=form.block_rows,
        BLOCK_CODES=form.block_codes,
        BLOCK_DIM=form.block_dim,
        CHUNK=form.chunk,
        NUM_STAGES=form.num_stages,
        **ROUNDING[torch.float16],
        num_warps=form.num_warps,
        **registers(_DIRECT_REGISTERS),
    )


class _Listed(NamedTuple):
    """The rows that are left to `rescan` and to `exact`.

    Attributes:
        rows: int64 [H, N], those for `rescan` from the front, those for `exact` from the back.
        counts: int32 [2, H], zeros; how many there are of each.
        programs: those of `exact` that share out the rows of a book.
        rescan_programs: those of `rescan`, not more.
        part_distances: float64 [H, programs, rows of a program], for either kernel in turn.
        part_codes: int64, likewise.
    """

    rows: Pointer
    counts: Pointer
    programs: int
    rescan_programs: int
    part_distances: Pointer
    part_codes: Pointer


def plan_kernels(plan: Plan, search: SearchOperands, processors: int, *, filtered: bool) -> None:
    """The search in six kernels, five if the codes are packed already, or in `exact` alone."""
    heads, _, dim = search.codebook.shape
    filtered = filtered and dim <= LONGEST_ROW
    programs = max(1, _LISTED_PROGRAMS_PER_SM * processors // heads)
    rescan_programs = max(1, _RESCAN_PROGRAMS_PER_SM * processors // heads)
    support = support_configuration(dim, search.alignment > 1)
    packs = filtered and search.prepared is None
    limits = tuple(plan.zeros((heads,), torch.int32) for _ in range(3 if packs else 0))
    counts = plan.zeros((2, heads), torch.int32)
    rescan_arrivals = plan.zeros((heads, rescan_programs), torch.int32)
    exact_arrivals = plan.zeros((heads, programs), torch.int32)
    shared = (heads, programs, max(support.exact_rows, support.rescan_rows))
    listed = _Listed(
        plan.empty((heads, search.rows.num_rows if filtered else 0), torch.int64),
        counts,
        programs,
        rescan_programs,
        plan.empty(shared, torch.float64),
        plan.empty(shared, torch.int64),
    )
    if filtered:
        _plan_filter(plan, search, support, limits, listed, rescan_arrivals, processors)
    _plan_exact(plan, search, support, listed, exact_arrivals, all_rows=not filtered)


def _plan_filter(
    plan: Plan,
    search: SearchOperands,
    support: SupportConfiguration,
    limits: tuple[Pointer, ...],
    listed: _Listed,
    arrivals: Pointer,
    processors: int,
) -> None:
    """Packs if need be; scans, settles and rechecks slabs of rows; rescans what is listed."""
    heads, _, dim = search.codebook.shape
    num_rows = search.rows.num_rows
    config = configuration(dim, search.packed_dtype)
    form = PackedForm.of_search(search.codebook.shape, search.packed_dtype)
    start_columns = form.start_columns
    packed = search.prepared
    if packed is None:
        packed = form.laid_out(plan.memory, limits)
        prepare(
            plan,
            search.codebook,
            search.rows,
            search.z_head,
            packed,
            block_dim=config.block_dim,
            start_columns=start_columns,
            codes_at_once=support.prepare_codes,
        )
    columns = packed.columns
    # Codes are divided, and results merged, only if there are fewer blocks of rows than programs.
    programs = _PROGRAMS_PER_SM * processors
    tiles = packed.rows // config.block_codes
    row_blocks = triton.cdiv(num_rows, config.block_rows)
    parts = max(1, min(programs // (row_blocks * heads), tiles // _LEAST_TILES))
    parts = max(parts, triton.cdiv(tiles, TILES_PER_PART.value))
    lanes_of_parts = 1 if parts == 1 else support.parts
    simple = parts == 1 and search.alignment == 16
    settle_registers = _SETTLE_REGISTERS if simple else _EXACT_REGISTERS
    slab_rows = min(num_rows, max(_ENTRIES // (parts * heads), config.block_rows))
    z_aligned = widest_alignment(dim, search.rows, search.z_head)
    store_rows = z_aligned == 1 or columns > min(_LONGEST_DIRECT, config.block_dim)
    if store_rows:
        most = max(_PACKED_ELEMENTS // (columns * heads), config.block_rows)
        slab_rows = min(slab_rows, most)
    padded_rows = triton.cdiv(slab_rows, config.block_rows) * config.block_rows
    packed_rows = plan.empty(
        (heads, padded_rows if store_rows else 0, columns), search.packed_dtype
    )
    scores = plan.empty((heads, parts, slab_rows), torch.float32)
    groups = plan.empty((heads, parts, slab_rows), torch.int32)
    rest = plan.empty((heads, parts, slab_rows), torch.float32)
    rounding = plan.empty((heads, slab_rows), torch.float32)
    row_norm = plan.empty((heads, slab_rows), torch.float32)
    keys = plan.empty((heads, parts, slab_rows, config.block_codes // config.group), torch.int32)
    seconds = plan.empty((heads, parts, slab_rows), torch.float32)
    in_doubt = plan.empty((heads, slab_rows), torch.int64)
    num_in_doubt = plan.empty((heads,), torch.int32)
    bounds = plan.empty((2, heads, num_rows), torch.float32)
    for first_row in range(0, num_rows, slab_rows):
        slab = (*search.z_arguments, first_row, slab_rows)
        plan.launch(
            scan_kernel,
            (triton.cdiv(slab_rows, config.block_rows), parts, heads),
            *slab,
            dim,
            packed.codes,
            packed.start,
            packed.centre,
            packed.scale,
            packed.rows,
            columns // config.block_dim,
            scores,
            groups,
            rest,
            keys,
            seconds,
            rounding,
            row_norm,
            packed_rows,
            num_in_doubt,
            ALIGNED=z_aligned,
            STORE_ROWS=store_rows,
            START_COLUMNS=start_columns,
            COPIES=copies_of_starts(config),
            ONE_CHUNK=columns == config.block_dim,
            BLOCK_ROWS=config.block_rows,
            BLOCK_CODES=config.block_codes,
            BLOCK_DIM=config.block_dim,
            CHECK_DIM=16,
            GROUP=config.group,
            NUM_STAGES=config.num_stages,
            num_warps=config.num_warps,
            **(registers(_PLAIN_REGISTERS) if search.packed_dtype == torch.float32 else {}),
        )
        plan.launch(
            settle_kernel,
            (triton.cdiv(slab_rows, support.settle_rows), heads),
            *slab,
            *search.result_arguments,
            packed.centre,
            packed.scale,
            packed.base,
            packed.max_norm,
            packed.max_rounding,
            packed.has_outliers,
            columns,
            scores,
            groups,
            rest,
            rounding,
            row_norm,
            parts,
            in_doubt,
            num_in_doubt,
            listed.rows,
            listed.counts,
            bounds,
            ALIGNED=search.alignment,
            QUANTIZE=search.quantizes,
            BLOCK_ROWS=support.settle_rows,
            GROUP=config.group,
            SLOTS=config.block_codes // config.group,
            PARTS=lanes_of_parts,
            CHUNK=support.chunk,
            GROUP_CHUNK=support.settle_chunk,
            START_COLUMNS=start_columns,
            **ROUNDING[search.packed_dtype],
            num_warps=support.settle_warps,
            **registers(settle_registers),
        )
        plan.launch(
            recheck_kernel,
            (listed.programs, heads),
            *slab,
            *search.result_arguments,
            packed.centre,
            packed.scale,
            packed.rows,
            columns,
            scores,
            keys,
            seconds,
            parts,
            in_doubt,
            num_in_doubt,
            listed.rows,
            listed.counts,
            bounds,
            ALIGNED=search.alignment,
            QUANTIZE=search.quantizes,
            BLOCK_ROWS=support.recheck_rows,
            BLOCK_CODES=config.block_codes,
            GROUP=config.group,
            PARTS=lanes_of_parts,
            CHUNK=support.chunk,
            GROUP_CHUNK=support.group_chunk,
            num_warps=4,
            **registers(_RECHECK_REGISTERS),
        )
    plan.launch(
        rescan_kernel,
        (listed.rescan_programs, heads),
        *search.z_arguments,
        *search.result_arguments,
        packed.codes,
        packed.start,
        packed.centre,
        packed.scale,
        packed.rows,
        columns // config.block_dim,
        listed.rows,
        listed.counts,
        bounds,
        arrivals,
        listed.part_distances,
        listed.part_codes,
        listed.rescan_programs,
        ALIGNED=search.alignment,
        QUANTIZE=search.quantizes,
        START_COLUMNS=start_columns,
        ONE_CHUNK=columns == config.block_dim,
        BLOCK_ROWS=support.rescan_rows,
        BLOCK_CODES=config.block_codes,
        BLOCK_DIM=config.block_dim,
        GROUP=config.group,
        NUM_STAGES=config.num_stages,
        CHUNK=support.chunk,
        GROUP_CHUNK=support.group_chunk,
        num_warps=8,
        **registers(_RESCAN_REGISTERS),
    )


def _plan_exact(
    plan: Plan,
    search: SearchOperands,
    support: SupportConfiguration,
    listed: _Listed,
    arrivals: Pointer,
    *,
    all_rows: bool,
) -> None:
    """Measures every code in float64, for the rows listed without a bound or for all."""
    plan.launch(
        exact_kernel,
        (listed.programs, search.codebook.shape[0]),
        *search.z_arguments,
        *search.result_arguments,
        listed.rows,
        listed.counts,
        arrivals,
        listed.part_distances,
        listed.part_codes,
        listed.programs,
        ALIGNED=search.alignment,
        ALL_ROWS=all_rows,
        QUANTIZE=search.quantizes,
        BLOCK_ROWS=support.exact_rows,
        BLOCK_CODES=support.exact_codes,
        CHUNK=support.chunk,
        num_warps=4,
        **registers(_EXACT_REGISTERS),
    )
