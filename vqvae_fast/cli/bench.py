"""``vqvae-fast bench``."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from vqvae_fast.atomic import atomic_file
from vqvae_fast.bench import environment, layer, residual, search, tables
from vqvae_fast.bench.contender import residual_contender, search_contender
from vqvae_fast.bench.contest import FailedContenderError, InexactError, is_ours
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import (
    FROZEN_RESIDUAL_PEERS,
    FROZEN_SEARCH_PEERS,
    SEARCH_PEERS,
    ResidualPeer,
    SearchPeer,
)
from vqvae_fast.bench.threads import check_threads
from vqvae_fast.cli.output import FILE_NAME, check_file, overwrite_option
from vqvae_fast.errors import UserError
from vqvae_fast.extras import needs_extra

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


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        searches: shapes of searches in a codebook that each call prepares anew.
        few: shapes of searches in a codebook that was prepared beforehand.
        stages: shapes of residual quantization.
        layers: shapes of the layer's training step.
        dtype: of the searches.
        search_peers: the contenders of ``searches``.
        few_peers: the contenders of ``few``.
        residual_peers: the contenders of ``stages``.
    """

    searches: Sequence[Shape]
    few: Sequence[Shape]
    stages: Sequence[residual.Stages]
    layers: Sequence[Shape]
    dtype: torch.dtype
    search_peers: Sequence[SearchPeer]
    few_peers: Sequence[SearchPeer]
    residual_peers: Sequence[ResidualPeer]


def _each(convert: Callable[[str], Any]) -> Callable[..., tuple[Any, ...]]:
    """Returns a callback of click that converts every value of an option."""

    def parse(
        _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
    ) -> tuple[Any, ...]:
        try:
            return tuple(map(convert, texts))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return parse


@click.command(context_settings={"show_default": True})
@click.option(
    "--shape",
    "shapes",
    callback=_each(Shape.parse),
    multiple=True,
    metavar="N,K,D",
    show_default="several that published models use",
    help="Rows, codes and their length; may be given several times.",
)
@click.option(
    "--stages",
    callback=_each(residual.Stages.parse),
    multiple=True,
    metavar="Q,N,K,D",
    show_default="EnCodec's and DAC's, unless shapes are given",
    help="Stages of residual quantization, rows, codes and their length.",
)
@click.option(
    "--contender",
    "contenders",
    callback=_each(search_contender),
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A search of your own, or FILE.py:FUNCTION. The function takes z [N, D] and codebook "
    "[K, D] and returns the call that is timed, which returns the indices.",
)
@click.option(
    "--residual-contender",
    "residual_contenders",
    callback=_each(residual_contender),
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="The same for residual quantization: codebooks [Q, K, D], indices [N, Q].",
)
@click.option("--no-peers", is_flag=True, help="Leave other libraries out.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    help="The numbers of the searches.",
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
@click.option(
    "--charts",
    metavar="FOLDER",
    help="Write speed_up.png and roofline.png of the searches to FOLDER (needs matplotlib).",
)
@overwrite_option
def bench(
    shapes: tuple[Shape, ...],
    stages: tuple[residual.Stages, ...],
    contenders: tuple[SearchPeer, ...],
    residual_contenders: tuple[ResidualPeer, ...],
    no_peers: bool,
    dtype: str,
    rounds: int,
    threads: int | None,
    out: str | None,
    charts: str | None,
    overwrite: bool,
) -> None:
    """Compare our kernels with other libraries on this machine, in a minute or two.

    Every answer is checked in float64, before and after it is timed. Few vectors are also searched
    in a codebook that each contender has prepared beforehand, as vqvae_fast.pack does. The
    contenders take turns on the same data, round after round; figures are medians with their
    quartiles. Libraries that are not installed are named (pip install vqvae_fast[bench]).

    With --contender or --residual-contender a function of your own takes part. Only what it
    competes in, and the shapes that you name, are measured then.
    """
    file = None if out in (None, "-") else FILE_NAME.convert(out, None, None)
    if file:
        check_file(file, overwrite)
    pictures = _pictures(charts, overwrite) if charts is not None else None
    threads = threads or torch.get_num_threads()
    try:
        check_threads(threads)
    except ValueError as error:
        raise UserError(str(error)) from error
    plan = _plan(shapes, stages, contenders, residual_contenders, no_peers, getattr(torch, dtype))
    record = measure(plan, rounds, threads, (lambda line: None) if out == "-" else click.echo)
    if out == "-":
        click.echo(json.dumps(record, indent=1))
    elif file:
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if pictures:
        _draw(pictures, record["search"])


def _plan(
    shapes: Sequence[Shape],
    stages: Sequence[residual.Stages],
    contenders: Sequence[SearchPeer],
    residual_contenders: Sequence[ResidualPeer],
    no_peers: bool,
    dtype: torch.dtype,
) -> Plan:
    """Chooses the default shapes of what the options do not name, and the contenders."""

    def chosen(peers: Sequence[Any], mine: Sequence[Any]) -> list[Any]:
        return [*(peer for peer in peers if is_ours(peer.name) or not no_peers), *mine]

    mine = bool(contenders or residual_contenders)
    nothing_named = not (mine or shapes or stages)

    def wanted(named: Sequence[Any], own: Sequence[Any], default: Sequence[Any]) -> Sequence[Any]:
        """The default is for contenders without a shape, and for a call without any option."""
        return named or (default if own or nothing_named else ())

    few = [shape for shape in shapes if shape.n <= _FEW] if shapes else FEW_SHAPES
    search_peers = list(SEARCH_PEERS)
    if contenders:  # they may prepare the codebook beforehand, so ours does it, too
        search_peers.insert(1, FROZEN_SEARCH_PEERS[0])
    return Plan(
        searches=wanted(shapes, contenders, SEARCH_SHAPES),
        few=few if shapes or contenders or nothing_named else (),
        stages=wanted(stages, residual_contenders, RESIDUAL_SHAPES),
        layers=() if mine else wanted(shapes, (), LAYER_SHAPES),
        dtype=dtype,
        search_peers=chosen(search_peers, contenders),
        few_peers=chosen(FROZEN_SEARCH_PEERS, contenders),
        residual_peers=chosen(FROZEN_RESIDUAL_PEERS, residual_contenders),
    )


def measure(
    plan: Plan, rounds: int, threads: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The record: head, and those of :mod:`vqvae_fast.bench.search`, ``residual`` and ``layer``.

    Args:
        plan: what is measured.
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
            [gaussian(shape, plan.dtype) for shape in plan.searches],
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            peers=plan.search_peers,
            found=lambda entry: say("\n".join(_search_table(entry, told))),
        )
        if "gflops" in searches["peak"]:
            say(f"\nmeasured float32 peak: {searches['peak']['gflops']:.0f} GFLOP/s")
        few = search.run(
            [gaussian(shape, plan.dtype) for shape in plan.few],
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            peers=plan.few_peers,
            found=lambda entry: say("\n".join(_few_table(entry, told))),
        )
        stages = residual.run(
            plan.stages,
            threads,
            rounds,
            _TURN_SECONDS,
            peers=plan.residual_peers,
            found=lambda entry: say("\n".join(_residual_table(entry, told))),
        )
        layers = layer.run(
            plan.layers,
            threads,
            rounds,
            _TURN_SECONDS,
            with_memory=False,
            found=lambda entry: say("\n".join(_layer_table(entry, told))),
        )
    except (InexactError, FailedContenderError, layer.WrongLayerError) as error:
        raise UserError(f"nothing more was measured: {error}; please report this") from error
    say(
        "\nTimes are milliseconds a call, median (quartiles); GFLOP/s counts 2NKD. Integer kernels "
        "may exceed the float32 peak."
    )
    return head | {"search": searches, "few": few, "residual": stages, "layer": layers}


def _pictures(folder: str, overwrite: bool) -> tuple[Path, Path]:
    """Returns the charts' names, or raises UserError if they cannot be drawn or written."""
    with needs_extra("bench", "--charts"):
        import matplotlib.figure  # noqa: F401  # known before minutes of measuring
    path = FILE_NAME.convert(folder, None, None)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, the name of a folder was expected")
    path.mkdir(parents=True, exist_ok=True)
    pictures = (path / "speed_up.png", path / "roofline.png")
    for picture in pictures:
        check_file(picture, overwrite)
    return pictures


def _draw(pictures: tuple[Path, Path], record: dict[str, Any]) -> None:
    from vqvae_fast.bench import charts

    names = dict.fromkeys(name for entry in record["results"] for name in entry["contenders"])
    title = "The search, Gaussian vectors and codes (N x K x D)"
    drawn = (
        charts.search_speed_up(pictures[0], record["results"], title),
        charts.search_roofline(pictures[1], record, names),
    )
    for picture, there in zip(pictures, drawn, strict=True):
        click.echo(f"wrote {picture}" if there else f"{picture} has nothing to show", err=True)


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
