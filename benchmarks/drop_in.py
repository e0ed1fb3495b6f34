"""Times our drop-ins beside vector-quantize-pytorch's: ``python -m benchmarks.drop_in``."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, memory, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers.base import StepResult, needs, training_step
from vqvae_fast.bench.threads import all_threads

OURS, PEER = "vqvae_fast", "vector_quantize_pytorch"
unavailable = needs(PEER, "vector-quantize-pytorch")


class WrongStepError(AssertionError):
    """Our first step differs from the peer's, so nothing is timed."""


class Configuration(NamedTuple):
    """A module of both packages and the arguments that both get, beside dim and codebook_size."""

    module: str
    label: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The id in tables and tests."""
        return f"{self.module} ({self.label})"


LAYERS = (
    Configuration("VectorQuantize", "EMA", {}),
    Configuration("VectorQuantize", "learnable", {"learnable_codebook": True, "ema_update": False}),
)
RESIDUAL = (
    Configuration("ResidualVQ", "8 stages", {"num_quantizers": 8}),
    Configuration("GroupedResidualVQ", "2 groups, 8 stages", {"num_quantizers": 8, "groups": 2}),
)
LAYER_SHAPES = (Shape(2048, 8192, 64), Shape(4096, 16384, 8), Shape(2048, 65536, 32))
RESIDUAL_SHAPE = Shape(4800, 1024, 128)  # EnCodec
CONFIGURATIONS = {configuration.name: configuration for configuration in (*LAYERS, *RESIDUAL)}
CASES = (
    *((configuration, shape) for shape in LAYER_SHAPES for configuration in LAYERS),
    (RESIDUAL[0], RESIDUAL_SHAPE),
    (RESIDUAL[1], Shape(4800, 1024, 256)),  # a group of 128 each
    (RESIDUAL[0], Shape(2048, 8192, 128)),
    (RESIDUAL[1], Shape(2048, 8192, 256)),
)
QUICK = (*((c, Shape(96, 40, 16)) for c in LAYERS), *((c, Shape(96, 20, 16)) for c in RESIDUAL))


def build(package: str, configuration: Configuration, shape: Shape) -> nn.Module:
    """Return the module from one seed, with Gaussian codes, in training mode."""
    torch.manual_seed(0)
    cls = getattr(importlib.import_module(package), configuration.module)
    module: nn.Module = cls(dim=shape.d, codebook_size=shape.k, **configuration.arguments)
    for name, value in module.state_dict().items():
        if name.endswith(("_codebook.embed", "_codebook.embed_avg")):
            # Both averages must match the codes, or the first update would discard them.
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                value.copy_(torch.randn(value.shape, generator=generator))
    return module.train()


def inputs(shape: Shape) -> Tensor:
    """Return Gaussian vectors [1, N, D]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, shape.n, shape.d, generator=generator)


def step_of(module: nn.Module, shape: Shape) -> Callable[[], StepResult]:
    """Return a call of forward and backward in training mode, with the codebook's update."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = module(x)
        module.zero_grad(set_to_none=True)
        return quantized, loss.sum()

    return training_step(forward, inputs(shape))


def check(configuration: Configuration, shape: Shape) -> None:
    """Check one step of both from the same state: they must agree within float32's rounding.

    Raises:
        WrongStepError: they differ in more than one row of a thousand, which near ties explain.
    """
    steps = [step_of(build(package, configuration, shape), shape)() for package in (OURS, PEER)]
    for ours, theirs in zip(*steps, strict=True):
        far = ((ours - theirs).abs() > 1e-3 * theirs.abs().max()).any(dim=-1)
        if float(far.float().mean()) > 1e-3:
            raise WrongStepError(f"{configuration.name} at {shape.name}: {far.sum()} rows differ")


def compare(
    configuration: Configuration, shape: Shape, threads: int, rounds: int, with_memory: bool
) -> dict[str, Any]:
    """Return the JSON record of one configuration at a shape.

    Raises:
        WrongStepError: our first step is not the peer's.
    """
    check(configuration, shape)
    calls = {p: step_of(build(p, configuration, shape), shape) for p in (OURS, PEER)}
    timings = interleaved(calls, rounds, min_seconds=0.05)
    entry: dict[str, Any] = {
        "configuration": configuration.name,
        "shape": shape._asdict(),
        "seconds": {package: timing._asdict() for package, timing in timings.items()},
        "times_faster": ratio(timings[OURS], timings[PEER])._asdict(),
    }
    if with_memory:
        peaks = {
            package: memory.measure(
                "benchmarks.drop_in:memory_call", f"{package}:{configuration.name}", shape, threads
            )
            for package in (OURS, PEER)
        }
        entry["peak_memory"] = {p: peak.total if peak else None for p, peak in peaks.items()}
    return entry


def memory_call(name: str, shape: Shape) -> Callable[[], StepResult]:
    """Return the step that :mod:`vqvae_fast.bench.memory` measures, after one on a few rows."""
    package, _, configuration = name.partition(":")
    module = build(package, CONFIGURATIONS[configuration], shape)
    step_of(module, shape._replace(n=64))()
    return step_of(module, shape)


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table."""
    parts = [
        tables.heading(record),
        "One training step of the module alone, forward and backward on float32 [1, N, D] and the "
        "codebook's update, Gaussian data and codes, in the same process. Times are milliseconds: "
        f"median (quartiles) of {record['rounds']} interleaved rounds; ratios are taken round by "
        "round. Memory is the peak of resident memory during a step over that before it, outputs "
        "and gradients included.\n\n",
    ]
    rows = []
    for entry in record["results"]:
        seconds, peaks = entry["seconds"], entry.get("peak_memory", {})
        ours, theirs = peaks.get(OURS), peaks.get(PEER)
        rows.append(
            (
                entry["configuration"],
                ", ".join(map(str, entry["shape"].values())),
                tables.milliseconds(seconds[OURS]),
                tables.milliseconds(seconds[PEER]),
                tables.times(entry["times_faster"]),
                tables.mebibytes(ours),
                tables.mebibytes(theirs),
                f"{theirs / ours:.0f}x" if ours and theirs else "-",
            )
        )
    head = ("module", "N, K, D", "ours, ms", "peer, ms", "faster", "ours, MiB", "peer, MiB", "less")
    return "".join(parts) + tables.table(head, rows)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json).

    Raises:
        SystemExit: the peer is not installed.
    """
    parser = command_line.parser("benchmarks.drop_in", __doc__, rounds=7)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    if reason := unavailable():
        raise SystemExit(f"benchmarks.drop_in compares with {PEER}: {reason}")
    cases = QUICK if options.quick else CASES
    if options.shapes:
        cases = tuple((c, shape) for shape in options.shapes for c in CONFIGURATIONS.values())
    rounds = 1 if options.quick else options.rounds
    with all_threads(options.threads):
        entries = [
            compare(*case, options.threads, rounds, not options.no_memory)
            for case in tqdm(cases, desc="drop-in", unit="case", disable=None)
        ]
    record = environment.describe("benchmarks.drop_in", options.threads)
    record |= {"rounds": rounds, "results": entries}
    command_line.publish(record, markdown(record), options, "drop_in")
    return record


if __name__ == "__main__":
    main()
