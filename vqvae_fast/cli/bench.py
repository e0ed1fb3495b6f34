"""``vqvae-fast bench``."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import torch

from vqvae_fast.atomic import atomic_file
from vqvae_fast.bench import environment, layer, residual, search, tables
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import FROZEN_SEARCH_PEERS
from vqvae_fast.bench.threads import check_threads
from vqvae_fast.cli.output import FILE_NAME, check_file, overwrite_option
from vqvae_fast.errors import UserError

# The reference VQ-VAE on CIFAR-10, DAC's short codes, GCP-VQVAE's codebook, a large one.
SEARCH_SHAPES = (
    Shape(2048, 512, 64),
    Shape(16384, 1024, 8),
    Shape(4096, 8192, 64),
    Shape(2048, 65536, 32),
)
LAYER_SHAPES = (Shape(2048, 512, 64), Shape(2048, 8192, 64))
# A codec that streams, Mimi, and LlamaGen's short codes: few vectors, codebooks that do not change.
_FEW = 125
FEW_SHAPES = tuple(Shape(n, k, d) for k, d in ((2048, 256), (16384, 8)) for n in (1, 13, 50, _FEW))
# EnCodec at 6 kbit/s, and the searches of DAC.
RESIDUAL_SHAPES = tuple(
    residual.Stages(Shape(n, k, d), stages)
    for k, d, stages in ((1024, 128, 8), (1024, 8, 9))
    for n in (1, 13, _FEW)
)
_TURN_SECONDS = 0.05


def _parse(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> tuple[Shape, ...]:
    try:
        return tuple(map(Shape.parse, texts))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(context_settings={"show_default": True})
@click.option(
    "--shape",
    "shapes",
    callback=_parse,
    multiple=True,
    metavar="N,K,D",
    show_default="several that published models use",
    help="Rows, codes and their length; may be given several times.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Turns of each contender.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    show_default="torch's",
    help="Threads that every contender uses.",
)
@click.option(
    "--json",
    "out",
    metavar="FILE",
    help="Write all figures to FILE, or with - to stdout, without tables.",
)
@overwrite_option
def bench(
    shapes: tuple[Shape, ...], rounds: int, threads: int | None, out: str | None, overwrite: bool
) -> None:
    """Compare our kernels with other libraries on this machine, in a minute or two.

    Every answer is checked in float64 first. Few vectors are also searched in a codebook that each
    contender has prepared beforehand, as vqvae_fast.pack does. The contenders take turns on the
    same data, round after round; figures are medians with their quartiles. Libraries that are not
    installed are named (pip install vqvae_fast[bench]).
    """
    file = None if out in (None, "-") else FILE_NAME.convert(out, None, None)
    if file:
        check_file(file, overwrite)
    threads = threads or torch.get_num_threads()
    try:
        check_threads(threads)
    except ValueError as error:
        raise UserError(str(error)) from error
    if out == "-":
        click.echo(json.dumps(measure(shapes, rounds, threads), indent=1))
        return
    record = measure(shapes, rounds, threads, click.echo)
    if file:
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(
    shapes: Sequence[Shape],
    rounds: int,
    threads: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record: head, and those of :mod:`vqvae_fast.bench.search`, ``residual`` and ``layer``.

    Args:
        shapes: what to measure; none stands for the default shapes. Those of few vectors are also
            searched in a codebook that was packed beforehand. Stages have default shapes alone.
        rounds: turns of each contender.
        threads: of every contender.
        say: takes the lines for a terminal, each table as soon as it is measured.
    """
    head = environment.describe("bench", threads)
    head["command"] = " ".join(["vqvae-fast", *sys.argv[1:]])
    say(
        f"{head['cpu']}, {head['threads']} of {head['cores']} cores, "
        f"kernels: {head['isa']}, torch {torch.__version__}"
    )
    told: set[tuple[str, str]] = set()
    try:
        searches = search.run(
            [gaussian(shape) for shape in shapes or SEARCH_SHAPES],
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            found=lambda entry: say("\n".join(_search_table(entry, told))),
        )
        if "gflops" in searches["peak"]:
            say(f"\nmeasured float32 peak: {searches['peak']['gflops']:.0f} GFLOP/s")
        few = search.run(
            [gaussian(shape) for shape in shapes or FEW_SHAPES if shape.n <= _FEW],
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            peers=FROZEN_SEARCH_PEERS,
            found=lambda entry: say("\n".join(_few_table(entry, told))),
        )
        stages = residual.run(
            () if shapes else RESIDUAL_SHAPES,
            threads,
            rounds,
            _TURN_SECONDS,
            found=lambda entry: say("\n".join(_residual_table(entry, told))),
        )
        layers = layer.run(
            shapes or LAYER_SHAPES,
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            found=lambda entry: say("\n".join(_layer_table(entry, told))),
        )
    except (search.InexactError, layer.WrongLayerError) as error:
        raise UserError(f"nothing more was measured: {error}; please report this") from error
    say(
        "\nTimes are milliseconds a call, median (quartiles); GFLOP/s counts 2NKD. Integer kernels "
        "may exceed the float32 peak."
    )
    return head | {"search": searches, "few": few, "residual": stages, "layer": layers}


def _search_table(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    yield f"\nsearch: {_sizes(entry)}"
    yield from _aligned(
        (
            name,
            tables.milliseconds(line["seconds"]) + " ms",
            f"{line['gflops']:.0f} GFLOP/s",
            f"{tables.share(line['share_of_peak'])} of peak",
            _compared(line),
        )
        for name, line in entry["contenders"].items()
    )
    yield from _not_run(entry, told)


def _few_table(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    return _table(f"search, codebook prepared: {_sizes(entry)}", entry, told, "ours, packed")


def _residual_table(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    title = f"residual quantization, codebooks prepared: {entry['stages']} stages, {_sizes(entry)}"
    return _table(title, entry, told, "ours, packed")


def _layer_table(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    return _table(f"quantizer layer, forward and backward: {_sizes(entry)}", entry, told)


def _table(
    title: str, entry: dict[str, Any], told: set[tuple[str, str]], first: str = "ours"
) -> Iterator[str]:
    yield f"\n{title}"
    yield from _aligned(
        (name, tables.milliseconds(line["seconds"]) + " ms", _compared(line, first))
        for name, line in entry["contenders"].items()
    )
    yield from _not_run(entry, told)


def _not_run(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    """Why contenders are missing; a reason that was ``told`` at another shape is not repeated."""
    for name, reason in entry["skipped"].items():
        if (name, reason) not in told:
            told.add((name, reason))
            yield f"  {name}: {reason}"


def _sizes(entry: dict[str, Any]) -> str:
    vectors = "1 vector" if entry["shape"]["n"] == 1 else f"{entry['shape']['n']} vectors"
    return vectors + ", {k} codes of length {d}".format(**entry["shape"])


def _compared(line: dict[str, Any], first: str = "ours") -> str:
    """How many times the first one is faster; if this one is not exact, also how often it errs."""
    slower = line["times_slower_than_ours"]
    if slower is None or slower["rounds"] == [1.0] * len(slower["rounds"]):
        return ""
    wrong = f", {tables.share(line['violating_rows'])} wrong" if line["violating_rows"] else ""
    return f"{first} is {tables.times(slower)} as fast{wrong}"


def _aligned(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Align the cells in columns, the first to the left."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join(["", name.ljust(widths[0]), *padded]).rstrip()
