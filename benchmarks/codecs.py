"""Times codecs' quantizers beside transformers' own: ``python -m benchmarks.codecs``.

The contenders are the quantizers of transformers' Mimi, EnCodec and DAC, from their own classes and
in the sizes of their published models, and ours from ``load_quantizer`` with the same weights. The
weights are random and scaled so that each stage has something to do; nothing is downloaded. The
time is the CPU time of one thread for one call.
"""

import copy
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import vqvae_fast
from benchmarks import command_line
from benchmarks.cpu_time import ABOUT_THE_TABLES, WrongCodeError, cell, timed
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.peers.base import needs
from vqvae_fast.bench.threads import all_threads
from vqvae_fast.nn import ResidualVQ, SplitResidualVQ

FRAMES = (1, 13, 50, 125, 500)
QUICK_FRAMES = (1, 13)
# A code of ours that is farther by more than this is an error, and no rounding of its residual.
_ROUNDING = 1e-4


class Sizes(NamedTuple):
    """The sizes of a codec: channels C, stages Q, codes K and their dimension D."""

    channels: int
    stages: int
    k: int
    d: int


class Codec(NamedTuple):
    """A codec of transformers.

    Attributes:
        name: the model.
        sizes: those of its published checkpoint.
        build: sizes -> its quantizer, without weights that mean something.
        encode: quantizer, x [B, C, T] -> indices [B, T, Q].
        decode: quantizer, indices -> the quantized x; None if ``encode`` has computed it, too.
        channels_last: whether ours takes [B, T, C].
        projects: whether it has projections that may be composed.
    """

    name: str
    sizes: Sizes
    build: Callable[[Sizes], nn.Module]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor] | None
    channels_last: bool
    projects: bool = False


def _modeling(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def _mimi(sizes: Sizes) -> nn.Module:
    library = _modeling("mimi")
    config = library.MimiConfig(
        hidden_size=sizes.channels,
        vector_quantization_hidden_dimension=sizes.d,
        codebook_dim=sizes.d,
        codebook_size=sizes.k,
        num_quantizers=sizes.stages,
    )
    return _with_weights(library.MimiSplitResidualVectorQuantizer(config), sizes)


def _encodec(sizes: Sizes) -> nn.Module:
    library = _modeling("encodec")
    config = library.EncodecConfig(codebook_size=sizes.k, codebook_dim=sizes.d, hidden_size=sizes.d)
    module = library.EncodecResidualVectorQuantizer(config)
    module.layers = module.layers[: sizes.stages]
    module.num_quantizers = len(module.layers)
    module.get_num_quantizers_for_bandwidth = lambda bandwidth=None: len(module.layers)
    return _with_weights(module, sizes)


def _dac(sizes: Sizes) -> nn.Module:
    library = _modeling("dac")
    config = library.DacConfig(
        n_codebooks=sizes.stages, codebook_size=sizes.k, codebook_dim=sizes.d
    )
    config.hidden_size = sizes.channels
    return _with_weights(library.DacResidualVectorQuantizer(config), sizes)


@torch.no_grad()
def _with_weights(module: nn.Module, sizes: Sizes) -> nn.Module:
    """Fill in weights: projections that keep a variance of 1, and codes that fit the residuals.

    A code of random direction takes most from a Gaussian vector at a variance of 2 ln(K) / D of its
    elements, and leaves K^(-2 / D) of the vector's variance.
    """
    generator = torch.Generator().manual_seed(0)
    largest = math.sqrt(2 * math.log(sizes.k) / sizes.d)
    left = sizes.k ** (-1 / sizes.d)
    for name, tensor in module.state_dict().items():
        stage = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
        if "init" in name or "cluster" in name:
            tensor.fill_(1)
        elif "proj" in name and name.endswith("weight"):
            tensor.normal_(generator=generator).div_(math.sqrt(tensor.shape[1]))
        elif "proj" in name:
            tensor.zero_()
        else:
            tensor.normal_(generator=generator).mul_(largest * left**stage)
    return module.eval()


CODECS = (
    Codec(
        "Mimi",
        Sizes(512, 32, 2048, 256),
        _mimi,
        lambda module, x: module.encode(x).permute(1, 2, 0),
        lambda module, indices: module.decode(indices.transpose(1, 2)),
        channels_last=False,
        projects=True,
    ),
    Codec(
        "EnCodec",
        Sizes(128, 32, 1024, 128),
        _encodec,
        lambda module, x: module.encode(x).permute(1, 2, 0),
        lambda module, indices: module.decode(indices.permute(2, 0, 1)),
        channels_last=True,
    ),
    Codec(
        "DAC",
        Sizes(1024, 9, 1024, 8),
        _dac,
        lambda module, x: module(x)[1].transpose(1, 2),
        None,
        channels_last=True,
        projects=True,
    ),
)
QUICK_SIZES = {
    "Mimi": Sizes(12, 4, 64, 8),
    "EnCodec": Sizes(8, 4, 64, 8),
    "DAC": Sizes(12, 3, 64, 4),
}
TIMED = {
    "ours, composed": "load_quantizer and freeze(compose_projections=True), where there are "
    "projections: one call gives codes and quantized vectors",
    "ours, frozen": "load_quantizer and freeze(): one call gives codes and quantized vectors",
    "ours": "load_quantizer: one call gives codes and quantized vectors",
    "transformers, codes": "their encode; for DAC their forward pass, which has both, and two "
    "losses for each stage",
    "transformers, both": "their encode and decode",
}


class Agreement(NamedTuple):
    """How the codes of two quantizers compare.

    Where the codes of a vector differ, the first stage at which they do is judged, because there
    both have the same residual. It is computed in float64 from the codes of the stages before.

    Attributes:
        vectors: how many there are.
        differ: how many have another code in a stage.
        ours_nearer: for how many of these our code is the nearer one.
        theirs_nearer: for how many of these theirs is.
        worst: the largest share by which ours is farther than theirs.
    """

    vectors: int
    differ: int
    ours_nearer: int
    theirs_nearer: int
    worst: float


def agreement(ours: nn.Module, x: Tensor, mine: Tensor, theirs: Tensor) -> Agreement:
    """Judge the indices [B, T, Q] of both for x as ``ours`` takes it."""
    differing = (mine != theirs).any(dim=-1)
    distances = [_distances(ours, x, indices) for indices in (mine, theirs)]
    first = (mine != theirs).int().argmax(dim=-1, keepdim=True)
    own, other = (part.gather(-1, first)[..., 0][differing] for part in distances)
    excess = (own - other) / other.clamp(min=torch.finfo(torch.float64).tiny)
    return Agreement(
        differing.numel(),
        int(differing.sum()),
        int((own < other).sum()),
        int((own > other).sum()),
        float(excess.max()) if len(excess) else 0.0,
    )


@torch.no_grad()
def _distances(quantizer: nn.Module, x: Tensor, indices: Tensor) -> Tensor:
    """The distances [B, T, Q] in float64 at which the stages have these codes."""
    exact = copy.deepcopy(quantizer).double()
    if isinstance(exact, SplitResidualVQ):
        parts = indices.tensor_split([exact.num_semantic_quantizers], dim=-1)
        return torch.cat(
            [
                _of_stages(half.vq, half.input_proj(x.double()).transpose(1, 2), part)
                for half, part in zip((exact.rvq_first, exact.rvq_rest), parts, strict=True)
            ],
            dim=-1,
        )
    assert isinstance(exact, ResidualVQ)
    return _of_stages(exact, x.double(), indices)


def _of_stages(quantizer: Any, residual: Tensor, indices: Tensor) -> Tensor:
    distances = []
    for stage, chosen in zip(quantizer.layers, indices.unbind(-1), strict=True):
        z, code = stage.project_in(residual), stage.codebook[chosen]
        if stage.cosine_search:
            distances.append(1 - nn.functional.cosine_similarity(z, code, dim=-1))
        else:
            distances.append((z - code).square().sum(dim=-1))
        residual = residual - stage.project_out(code)
    return torch.stack(distances, dim=-1)


@torch.no_grad()
def compare(
    codec: Codec, sizes: Sizes, frames: int, rounds: int, min_seconds: float
) -> dict[str, Any]:
    """Return the JSON record of one row.

    Raises:
        WrongCodeError: a code of ours is farther than theirs, by more than rounding.
    """
    theirs = codec.build(sizes)
    state = {f"quantizer.{name}": tensor for name, tensor in theirs.state_dict().items()}
    plain = vqvae_fast.load_quantizer(state).eval()
    frozen = vqvae_fast.freeze(copy.deepcopy(plain))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, sizes.channels, frames, generator=generator)
    given = x.transpose(1, 2) if codec.channels_last else x
    mine = frozen(given)[1]
    if not torch.equal(plain(given)[1], mine):
        raise WrongCodeError(f"{codec.name}, {frames} frames: freeze() has changed the codes")
    calls: dict[str, Callable[[], Any]] = {
        "ours, frozen": lambda: frozen(given),
        "ours": lambda: plain(given),
        "transformers, codes": lambda: codec.encode(theirs, x),
    }
    codes = {"frozen": mine}
    if codec.projects:
        composed = vqvae_fast.freeze(copy.deepcopy(plain), compose_projections=True)
        codes["composed"] = composed(given)[1]
        calls = {"ours, composed": lambda: composed(given)} | calls
    judged = {}
    for name, chosen in codes.items():
        judged[name] = agreement(plain, given, chosen, codec.encode(theirs, x))
        if judged[name].worst > _ROUNDING:
            raise WrongCodeError(
                f"{codec.name}, {frames} frames, {name}: a code of ours is farther: {judged[name]}"
            )
    if codec.decode is not None:
        decode = codec.decode
        calls["transformers, both"] = lambda: decode(theirs, codec.encode(theirs, x))
    return {
        "codec": codec.name,
        "sizes": sizes._asdict(),
        "frames": frames,
        "packed_bytes": frozen.packed_nbytes,
        "agreement": {name: one._asdict() for name, one in judged.items()},
        "contenders": timed(calls, 1, rounds, min_seconds),
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    times, codes = [], []
    for entry in record["results"]:
        sizes = Sizes(**entry["sizes"])
        lines = entry["contenders"]
        cells = [cell(lines[name]) if name in lines else "-" for name in TIMED]
        shape = f"{sizes.stages}, {sizes.k}, {sizes.d}"
        times.append((entry["codec"], shape, str(entry["frames"]), *cells))
        for name, of_ours in entry["agreement"].items():
            judged = Agreement(**of_ours)
            counts = (judged.vectors, judged.differ, judged.ours_nearer, judged.theirs_nearer)
            codes.append((entry["codec"], name, *map(str, counts)))
    return "".join(
        [
            tables.heading(record),
            "Float32, random weights, a batch of one. ",
            ABOUT_THE_TABLES.format(rounds=record["rounds"]),
            tables.table(("codec", "stages, K, D", "frames", *TIMED), times),
            "\nThe codes of ours (frozen or not, they are the same) and of theirs. Where those of "
            "a frame differ, float64 says whose code is nearer in the first stage that differs:"
            "\n\n",
            tables.table(
                ("codec", "ours", "frames", "differ", "ours nearer", "theirs nearer"), codes
            ),
            "\nTimed:\n" + "".join(f"- {name}: {text}\n" for name, text in TIMED.items()),
        ]
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.codecs", __doc__, rounds=9, shapes=False)
    parser.add_argument("--quick", action="store_true", help="tiny codecs, one short round")
    parser.add_argument(
        "--codecs",
        nargs="+",
        choices=[codec.name for codec in CODECS],
        help="the codecs that are timed; all by default",
    )
    parser.add_argument("--frames", nargs="+", type=command_line.positive, help="of each call")
    options = parser.parse_args(given)
    if reason := needs("transformers", "transformers")():
        raise SystemExit(f"no codecs to compare with: {reason}")
    chosen = [c for c in CODECS if options.codecs is None or c.name in options.codecs]
    counts = options.frames or (QUICK_FRAMES if options.quick else FRAMES)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.1)
    cases = [(codec, frames) for codec in chosen for frames in counts]
    entries = []
    with all_threads(1), tqdm(cases, desc="codecs", disable=None) as bar:
        for codec, frames in bar:
            sizes = QUICK_SIZES[codec.name] if options.quick else codec.sizes
            entries.append(compare(codec, sizes, frames, rounds, min_seconds))
    record = environment.describe("benchmarks.codecs", 1) | {
        "rounds": rounds,
        "timed": TIMED,
        "results": entries,
    }
    transformers = importlib.import_module("transformers")
    record["versions"] = record["versions"] | {"transformers": transformers.__version__}
    command_line.publish(record, markdown(record), options, "codecs")
    return record


if __name__ == "__main__":
    main()
