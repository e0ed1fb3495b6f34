"""Times models of other libraries, as they are and accelerated: ``python -m benchmarks.models``.

The models are the classes of transformers and diffusers in their published sizes, with random
weights; nothing is downloaded. Each runs whole, as a user calls it, and its quantizer runs alone,
on what the model gives it. The time is the CPU time of one thread for one call.
"""

import copy
import importlib
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import vqvae_fast
from benchmarks import command_line
from benchmarks.cpu_time import ABOUT_THE_TABLES, cell, timed
from vqvae_fast.bench import environment, memory, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers.base import needs
from vqvae_fast.bench.threads import all_threads

NAMES = ("accelerated", "own")
# The training step: images of this many pixels a side, and a VQGAN's codebook.
PIXELS, CODES, CODE_DIM = 256, 16384, 256


class Model(NamedTuple):
    """A model of another library.

    Attributes:
        name: the model, and its input.
        library: what must be installed.
        build: whether it is quick -> the model, with random weights.
        inputs: whether it is quick -> the keyword arguments with which it is called.
        method: what is called.
        quantizer: where its quantizer stands, and the quantizer's method that is called.
        compose_projections: whether the projections of its stages are composed.
    """

    name: str
    library: str
    build: Callable[[bool], nn.Module]
    inputs: Callable[[bool], dict[str, Any]]
    method: str
    quantizer: tuple[str, str]
    compose_projections: bool = False


def _modeling(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _mimi(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.mimi.modeling_mimi")
    small = {"num_filters": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_quantizers": 3}
    small |= {"intermediate_size": 32, "codebook_size": 32, "upsample_groups": 16}
    return library.MimiModel(library.MimiConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _encodec(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.encodec.modeling_encodec")
    small = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 32}
    return library.EncodecModel(library.EncodecConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _dac(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.dac.modeling_dac")
    small = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_size": 32}
    small |= {"n_codebooks": 3}
    return library.DacModel(library.DacConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _janus(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.janus.modeling_janus")
    small = {"base_channels": 32, "num_res_blocks": 1, "num_embeddings": 64, "latent_channels": 32}
    return library.JanusVQVAE(library.JanusVQVAEConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _chameleon(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.chameleon.modeling_chameleon")
    small = {"base_channels": 32, "num_res_blocks": 1, "num_embeddings": 64, "latent_channels": 32}
    return library.ChameleonVQVAE(library.ChameleonVQVAEConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _emu3(quick: bool) -> nn.Module:
    library = _modeling("transformers.models.emu3.modeling_emu3")
    small = {"base_channels": 32, "num_res_blocks": 1, "codebook_size": 64, "hidden_size": 128}
    return library.Emu3VQVAE(library.Emu3VQVAEConfig(**(small if quick else {})))  # type: ignore[no-any-return]


def _vq_model(quick: bool, codes: int, dim: int, channels: tuple[int, ...]) -> nn.Module:
    library = _modeling("diffusers")
    levels = len(channels)
    return library.VQModel(  # type: ignore[no-any-return]
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(32,) * levels if quick else channels,
        layers_per_block=1 if quick else 2,
        latent_channels=dim,
        num_vq_embeddings=64 if quick else codes,
    )


def _audio(frames: int, samples: int, **options: Any) -> Callable[[bool], dict[str, Any]]:
    """Makes the audio of so many frames, and adds options."""
    return lambda quick: {"input_values": torch.randn(1, 1, frames * samples), **options}


def _image(name: str) -> Callable[[bool], dict[str, Any]]:
    """Makes an image, the argument of this name."""

    def made(quick: bool) -> dict[str, Any]:
        pixels = 32 if quick else PIXELS
        return {name: torch.randn(1, 3, pixels, pixels)}

    return made


def _image_with_size(quick: bool) -> dict[str, Any]:
    """The image that Emu3 takes for a video, and its size."""
    image = _image("pixel_values")(quick)
    return image | {"image_sizes": torch.tensor([image["pixel_values"].shape[2:]])}


MODELS = (
    *(
        Model(
            f"Mimi, {frames} frame{'s' if frames > 1 else ''} of audio",
            "transformers",
            _mimi,
            _audio(frames, 1920),
            "encode",
            ("quantizer", "encode"),
        )
        for frames in (1, 13, 125)
    ),
    Model(
        "EnCodec, 75 frames of audio",
        "transformers",
        _encodec,
        _audio(75, 320, bandwidth=24.0),
        "encode",
        ("quantizer", "encode"),
    ),
    *(
        Model(
            f"DAC, 50 frames of audio{', projections composed' if composed else ''}",
            "transformers",
            _dac,
            _audio(50, 512),
            "encode",
            ("quantizer", "forward"),
            composed,
        )
        for composed in (False, True)
    ),
    Model(
        "Janus' tokenizer, an image",
        "transformers",
        _janus,
        _image("pixel_values"),
        "encode",
        ("quantize", "forward"),
    ),
    Model(
        "Chameleon's tokenizer, an image",
        "transformers",
        _chameleon,
        _image("pixel_values"),
        "encode",
        ("quantize", "forward"),
    ),
    Model(
        "Emu3's tokenizer, an image",
        "transformers",
        _emu3,
        _image_with_size,
        "encode",
        ("quantize", "forward"),
    ),
    Model(
        "latent diffusion's VQ-f8 in diffusers, an image",
        "diffusers",
        lambda quick: _vq_model(quick, 16384, 4, (128, 128, 256, 512)),
        _image("sample"),
        "forward",
        ("quantize", "forward"),
    ),
)


@torch.no_grad()
def _with_codes(model: nn.Module) -> nn.Module:
    """Fill in codebooks, which the classes leave at 0 or at one scale, in the scale of latents."""
    for name, tensor in model.named_buffers():
        if name.endswith(("embed_sum", "embed")):
            tensor.normal_()
    for name, parameter in model.named_parameters():
        if name.endswith(("embedding.weight", "codebook.weight")):
            parameter.normal_()
    return model.eval()


def _given(
    model: nn.Module, of: Model, inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the model calls its quantizer."""
    place, method = of.quantizer
    quantizer = operator.attrgetter(place)(model)
    calls = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return getattr(type(quantizer), method)(quantizer, *args, **kwargs)

    vars(quantizer)[method] = recorded
    getattr(model, of.method)(**inputs)
    del vars(quantizer)[method]
    return calls[0]


@torch.no_grad()
def measured(of: Model, quick: bool, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of one model."""
    torch.manual_seed(0)
    own = _with_codes(of.build(quick))
    inputs = of.inputs(quick)
    fast = copy.deepcopy(own)
    report = vqvae_fast.accelerate(fast, compose_projections=of.compose_projections, quiet=True)
    judged = vqvae_fast.compare(own, inputs, method=of.method)
    args, kwargs = _given(own, of, inputs)
    place, method = of.quantizer
    alone = {
        name: getattr(operator.attrgetter(place)(model), method)
        for name, model in zip(NAMES, (fast, own), strict=True)
    }
    whole = {
        name: getattr(model, of.method) for name, model in zip(NAMES, (fast, own), strict=True)
    }
    return {
        "model": of.name,
        "accelerated": len(report.accelerated),
        "vectors": sum(entry.vectors for entry in judged),
        "differ": sum(entry.differ for entry in judged),
        "ours_nearer": sum(entry.ours_nearer for entry in judged),
        "theirs_nearer": sum(entry.theirs_nearer for entry in judged),
        "quantizer": timed(
            {name: lambda call=call: call(*args, **kwargs) for name, call in alone.items()},
            1,
            rounds,
            min_seconds,
        ),
        "whole": timed(
            {name: lambda call=call: call(**inputs) for name, call in whole.items()}, 1, rounds, 0.0
        ),
    }


def _trainee(name: str, quick: bool) -> nn.Module:
    """A VQGAN, in training, as it is or accelerated."""
    torch.manual_seed(0)
    model = _vq_model(quick, CODES, CODE_DIM, (128, 128, 256, 256, 512)).train()
    if name == "accelerated":
        vqvae_fast.accelerate(model, quiet=True)
    return model


def _step(model: Any, x: Tensor) -> Callable[[], None]:
    """A training step of the autoencoder: forward, reconstruction and codebook loss, backward."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        h = model.encode(x).latents
        quantized, loss, _ = model.quantize(h)
        decoded = model.decoder(model.post_quant_conv(quantized))
        (nn.functional.mse_loss(decoded, x) + loss).backward()
        optimizer.step()

    return step


def _quantizer_step(quantizer: nn.Module, latents: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of the quantizer alone, which gives what a user of it keeps."""

    def step() -> tuple[Tensor, ...]:
        z = latents.detach().requires_grad_()
        quantized, loss, _ = quantizer(z)
        (quantized.sum() + loss).backward()
        assert z.grad is not None
        return quantized.detach(), z.grad

    return step


def quantizer_call(name: str, shape: Shape) -> Callable[[], tuple[Tensor, ...]]:
    """Make a quantizer's training step for :func:`vqvae_fast.bench.memory.measure`."""
    library = _modeling("diffusers.models.autoencoders.vae")
    quantizer = library.VectorQuantizer(shape.k, shape.d, beta=0.25, legacy=False)
    if name == "accelerated":
        vqvae_fast.accelerate(quantizer, quiet=True)
    _quantizer_step(quantizer, torch.randn(1, shape.d, 1, 1))()  # loads what all calls need
    return _quantizer_step(quantizer, torch.randn(shape.n, shape.d, 1, 1))


def training(quick: bool, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of a training step, whole and of the quantizer alone."""
    side = 2 if quick else PIXELS // 16
    images = torch.randn(1, 3, 16 * side, 16 * side)
    latents = torch.randn(8, CODE_DIM, side, side)
    models: dict[str, Any] = {name: _trainee(name, quick) for name in NAMES}
    whole = {name: _step(model, images) for name, model in models.items()}
    alone = {name: _quantizer_step(model.quantize, latents) for name, model in models.items()}
    shape = Shape(8 * side * side, 64 if quick else CODES, CODE_DIM)
    peaks = {
        name: memory.measure("benchmarks.models:quantizer_call", name, shape, 1) for name in NAMES
    }
    return {
        "shape": shape._asdict(),
        "whole": timed(whole, 1, rounds, 0.0),
        "quantizer": timed(alone, 1, rounds, min_seconds),
        "peak_bytes": {name: peak and peak.total for name, peak in peaks.items()},
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    times, codes = [], []
    for entry in record["results"]:
        cells = (cell(entry[part][name]) for part in ("quantizer", "whole") for name in NAMES)
        times.append((entry["model"], *cells))
        counts = ("vectors", "differ", "ours_nearer", "theirs_nearer")
        codes.append((entry["model"], *(str(entry[count]) for count in counts)))
    text = [
        tables.heading(record),
        "Float32, random weights, a batch of one. ",
        ABOUT_THE_TABLES.format(rounds=record["rounds"]),
        tables.table(
            ("model", *(f"{part}, {name}" for part in ("quantizer", "whole") for name in NAMES)),
            times,
        ),
        "\nThe codes that the models' own searches choose. Where ours is another one, float64 says "
        "which is nearer:\n\n",
        tables.table(("model", "vectors", "differ", "ours nearer", "theirs nearer"), codes),
    ]
    if "training" in record:
        step = record["training"]
        shape = Shape(**step["shape"])
        peaks = [
            "-" if step["peak_bytes"][name] is None else f"{step['peak_bytes'][name] / 2**20:.0f}"
            for name in NAMES
        ]
        rows = [
            ("whole, one image", *(cell(step["whole"][name]) for name in NAMES)),
            (f"quantizer, {shape.n} vectors", *(cell(step["quantizer"][name]) for name in NAMES)),
            (f"peak memory of it, MiB, {shape.n} vectors", *peaks),
        ]
        text += [
            f"\nA training step of a VQGAN in diffusers, {PIXELS} pixels, K={shape.k}, "
            f"D={shape.d}:\n\n",
            tables.table(("training step", *NAMES), rows),
        ]
    return "".join(text)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.models", __doc__, rounds=5, shapes=False)
    parser.add_argument("--quick", action="store_true", help="tiny models, one short round")
    parser.add_argument("--models", nargs="+", metavar="PART", help="whose names have such a part")
    parser.add_argument("--no-training", action="store_true", help="leave the training step out")
    options = parser.parse_args(given)
    wanted = options.models or [""]
    chosen = [of for of in MODELS if any(part.lower() in of.name.lower() for part in wanted)]
    missing = {of.library: needs(of.library, of.library)() for of in chosen}
    for reason in filter(None, missing.values()):
        print(f"left out: {reason}")
    chosen = [of for of in chosen if missing[of.library] is None]
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.1)
    entries = []
    with all_threads(1), tqdm(chosen, desc="models", disable=None) as bar:
        for of in bar:
            entries.append(measured(of, options.quick, rounds, min_seconds))
        trains = not options.no_training and needs("diffusers", "diffusers")() is None
        step = {"training": training(options.quick, rounds, min_seconds)} if trains else {}
    record = environment.describe("benchmarks.models", 1) | {"rounds": rounds, "results": entries}
    record |= step
    for library in {of.library for of in chosen}:
        version = importlib.import_module(library).__version__
        record["versions"] = record["versions"] | {library: version}
    command_line.publish(record, markdown(record), options, "models")
    return record


if __name__ == "__main__":
    main()
