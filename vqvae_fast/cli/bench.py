"""``vqvae-fast bench``."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import torch

from vqvae_fast.atomic import atomic_file
from vqvae_fast.bench import environment, layer, search, tables
from vqvae_fast.bench.data import Shape, gaussian
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

    Every answer is checked in float64 first. The contenders take turns on the same data, round
    after round; figures are medians with their quartiles. Libraries that are not installed are
    named (pip install vqvae_fast[bench]).
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
    """The record: head, and those of :mod:`vqvae_fast.bench.search` and ``layer``.

    Args:
        shapes: what to measure; none stands for the default shapes.
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
    return head | {"search": searches, "layer": layers}


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


def _layer_table(entry: dict[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    yield f"\nquantizer layer, forward and backward: {_sizes(entry)}"
    yield from _aligned(
        (name, tables.milliseconds(line["seconds"]) + " ms", _compared(line))
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
    return "{n} vectors, {k} codes of length {d}".format(**entry["shape"])


def _compared(line: dict[str, Any]) -> str:
    """How many times ours is faster; if the peer is not exact, also how often it errs."""
    slower = line["times_slower_than_ours"]
    if slower is None or slower["rounds"] == [1.0] * len(slower["rounds"]):
        return ""
    wrong = f", {tables.share(line['violating_rows'])} wrong" if line["violating_rows"] else ""
    return f"ours is {tables.times(slower)} as fast{wrong}"


def _aligned(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Align the cells in columns, the first to the left."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join(["", name.ljust(widths[0]), *padded]).rstrip()
