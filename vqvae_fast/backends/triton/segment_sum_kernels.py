"""The kernels of the segment sum: labels, bounds, and sums of the runs of sorted rows."""

# mypy: disable-error-code="assignment,unreachable"
# Tuples that grow in a loop are typed, but not Python's.

import triton
import triton.language as tl

# Rows of a chunk. Programs get chunks, not segments, so the number and the lengths of the segments
# do not change a program's work. With 64 rows the next pass is 32 times smaller, and there are
# still enough chunks to fill a GPU.
CHUNK_ROWS = tl.constexpr(64)


@triton.jit(do_not_specialize=["num_rows", "num_segments"])
def label_kernel(indices, labels, num_rows, num_segments, BLOCK: tl.constexpr):
    """The segment of each row, as narrow integers; num_segments for rows that have none."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(indices + row, row < num_rows, other=0)
    has_segment = (index >= 0) & (index < num_segments)
    label = tl.where(has_segment, index, num_segments)
    tl.store(labels + row, label.to(labels.dtype.element_ty), row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_segments"])
def bounds_kernel(labels, begin, end, num_rows, num_segments, BLOCK: tl.constexpr):
    """Writes where each segment begins and ends in the sorted rows; skips segments without rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_rows
    label = tl.load(labels + row, is_row, other=0).to(tl.int64)
    before = tl.load(labels + row - 1, is_row & (row > 0), other=-1).to(tl.int64)
    after = tl.load(labels + row + 1, row + 1 < num_rows, other=-1).to(tl.int64)
    has_segment = is_row & (label < num_segments)
    tl.store(begin + label, row, has_segment & (before != label))
    tl.store(end + label, row + 1, has_segment & (after != label))


@triton.jit
def place(row, inner, outer_stride, inner_stride, ONE_LEVEL: tl.constexpr, ALIGNED: tl.constexpr):
    """Offset, int64, of rows that lie as a ``Rows`` says.

    ONE_LEVEL: the rows are evenly spaced, so no division is needed. ALIGNED: the number of
    elements by which every stride can be divided.
    """
    if ONE_LEVEL:
        offset = row.to(tl.int64) * inner_stride
    else:
        offset = (row // inner).to(tl.int64) * outer_stride
        offset += (row % inner).to(tl.int64) * inner_stride
    return offset // ALIGNED * ALIGNED


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float64 in a narrower dtype; to a 16-bit type it is rounded by way of float32."""
    return value if dtype == tl.float64 else value.to(tl.float32).to(dtype)


@triton.jit(
    do_not_specialize=["inner", "outer_stride", "inner_stride", "num_rows", "num_segments", "dim"],
    do_not_specialize_on_alignment=["element_stride"],
)
def sum_runs_kernel(
    src, inner, outer_stride, inner_stride, element_stride,
    codes, order, labels, num_rows, num_segments, dim,
    sums, grad, factor: tl.float64,
    pieces, piece_labels,
    SORTED: tl.constexpr,
    ONE_LEVEL: tl.constexpr,
    ALIGNED: tl.constexpr,
    SUBTRACT: tl.constexpr,
    SCALE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BATCH: tl.constexpr,
):  # fmt: skip
    """Sums the runs of equal labels in chunks of sorted rows.

    A run that lies inside a chunk is a whole segment, and its sum is written. One that crosses the
    chunk's border leaves a piece: chunk c writes the part of a segment that began before it to row
    2c of `pieces`, and the part of one that continues behind it to row 2c + 1. The pieces are
    sorted rows again, for the next pass. Labels of num_segments mark rows and pieces without a
    segment.

    Rows are added in their order, in float64. Each thread keeps its columns of its chunk. Threads
    exchange nothing, so the result does not depend on the scheduling.

    SORTED: row i of src is the i-th sorted row; else it is row order[i]. SUBTRACT: each row minus
    the code of its segment. SCALE: sums are multiplied by the number at `grad`, and by `factor`.
    """
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    first = chunk * CHUNK_ROWS
    dim = dim // ALIGNED * ALIGNED
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    is_column = (column < dim)[None, :]
    src += column.to(tl.int64)[None, :] * element_stride
    nothing = num_segments
    scale = 1.0
    if SCALE:
        scale = tl.load(grad).to(tl.float64) * factor

    segment = tl.load(labels + first, first < num_rows, other=nothing).to(nothing.dtype)
    has_before = (first > 0) & (first < num_rows)
    before = tl.load(labels + first - 1, has_before, other=nothing).to(nothing.dtype)
    behind = first + CHUNK_ROWS
    after = tl.load(labels + behind, behind < num_rows, other=nothing).to(nothing.dtype)
    began_before = (before == segment) & (segment < nothing)
    has_head = began_before
    first_piece = pieces + (2 * chunk)[:, None] * dim + column[None, :]
    # The programs of a chunk's other columns write the same labels.
    tl.store(
        piece_labels + 2 * chunk,
        tl.where(began_before, segment, nothing).to(piece_labels.dtype.element_ty),
        first < num_rows,
    )

    total = tl.zeros((CHUNKS, BLOCK_DIM), tl.float64)
    head = tl.zeros((CHUNKS, BLOCK_DIM), tl.float64)
    for start in range(0, CHUNK_ROWS, BATCH):
        # All loads of a batch come first: a store between them would keep them waiting.
        batch_labels, values, less = (), (), ()
        for i in tl.static_range(BATCH):
            at = first + start + i
            label = tl.load(labels + at, at < num_rows, other=nothing).to(nothing.dtype)
            is_row = label < nothing
            batch_labels = batch_labels + (label,)  # noqa: RUF005 - tuples of Triton's language
            row = at if SORTED else tl.load(order + at, is_row, other=0)
            offset = place(
                row.to(num_rows.dtype), inner, outer_stride, inner_stride, ONE_LEVEL, ALIGNED
            )
            mask = is_row[:, None] & is_column
            value = tl.load(src + offset[:, None], mask, other=0.0)
            values = values + (value,)  # noqa: RUF005
            if SUBTRACT:
                code = codes + (label.to(tl.int64) * dim)[:, None] + column[None, :]
                code = tl.load(code, mask, other=0.0)
                less = less + (code,)  # noqa: RUF005
        for i in tl.static_range(BATCH):
            ends = batch_labels[i] != segment
            is_whole = ends & (began_before == 0) & (segment < nothing)
            out = sums + (segment.to(tl.int64) * dim)[:, None] + column[None, :]
            tl.store(
                out, rounded(total * scale, sums.dtype.element_ty), is_whole[:, None] & is_column
            )
            head = tl.where((ends & began_before)[:, None], total, head)
            total = tl.where(ends[:, None], 0.0, total)
            value = values[i].to(tl.float64)
            if SUBTRACT:
                value -= less[i].to(tl.float64)
            total += value
            began_before &= ends == 0
            segment = batch_labels[i]

    goes_on = (after == segment) & (segment < nothing)
    is_whole = (began_before == 0) & (goes_on == 0) & (segment < nothing)
    out = sums + (segment.to(tl.int64) * dim)[:, None] + column[None, :]
    tl.store(out, rounded(total * scale, sums.dtype.element_ty), is_whole[:, None] & is_column)
    # A chunk in the middle of a segment has a single piece. The other place gets a zero with the
    # same label, so that the next chunk's piece belongs to the same run.
    head = tl.where(began_before[:, None], total, head)
    tl.store(first_piece, head, has_head[:, None] & is_column)
    total = tl.where(began_before[:, None], 0.0, total)
    tl.store(first_piece + dim, total, goes_on[:, None] & is_column)
    tl.store(
        piece_labels + 2 * chunk + 1,
        tl.where(goes_on, segment, nothing).to(piece_labels.dtype.element_ty),
        first < num_rows,
    )
