"""The shapes and vectors of the benchmarks: Gaussian, or from a trained model."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae_fast.regular_files import check_regular


class Shape(NamedTuple):
    """The size of a search: N rows, K codes, D numbers in each."""

    n: int
    k: int
    d: int

    @property
    def name(self) -> str:
        """The id of the shape in tables and tests."""
        return f"{self.n}x{self.k}x{self.d}"

    @property
    def title(self) -> str:
        """The name of the shape, after that of the published model that has it, if there is one."""
        names = (name for name, model in PUBLISHED.items() if model.shape == self)
        model = next(names, None)
        return f"{model}: {self.name}" if model else self.name

    @property
    def flops(self) -> float:
        """The multiplications and additions of all N x K scores, without norms and selection."""
        return 2.0 * self.n * self.k * self.d

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read "2048,512,64", "2048x512x64", or a name in ``PUBLISHED``.

        Raises:
            ValueError: the text is neither three positive numbers nor such a name.
        """
        if text in PUBLISHED:
            return PUBLISHED[text].shape
        parts = text.replace("x", ",").split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
            raise ValueError(
                f"a shape must be three positive numbers N,K,D or one of {', '.join(PUBLISHED)}; "
                f"got {text!r}"
            )
        return cls(*(int(part) for part in parts))


class Published(NamedTuple):
    """The search of a published model on one device: a stage's shape, and the number of stages."""

    system: str
    shape: Shape
    stages: int = 1


PUBLISHED = {
    "vqvae-cifar10": Published("reference VQ-VAE, CIFAR-10", Shape(2048, 512, 64)),
    "vqvae2-bottom": Published("VQ-VAE-2, bottom", Shape(524288, 512, 64)),
    "vqgan-1024": Published("VQGAN, small codebook", Shape(768, 1024, 256)),
    "vqgan": Published("VQGAN", Shape(768, 16384, 256)),
    "ldm-f16": Published("LDM vq-f16", Shape(3584, 16384, 8)),
    "vit-vqgan": Published("ViT-VQGAN", Shape(4096, 8192, 32)),
    "llamagen": Published("LlamaGen", Shape(4096, 16384, 8)),
    "vqgan-lc": Published("VQGAN-LC", Shape(2048, 100000, 8)),
    "simvq": Published("SimVQ", Shape(16384, 65536, 128)),
    "simvq-262144": Published("SimVQ, large codebook", Shape(16384, 262144, 128)),
    "ibq": Published("IBQ", Shape(1024, 262144, 256)),
    "gcp-vqvae": Published("GCP-VQVAE", Shape(26624, 8192, 64)),
    "meshgpt": Published("MeshGPT", Shape(5956, 16384, 192), stages=2),
    "dac": Published("DAC, 44 kHz", Shape(2400, 1024, 8), stages=9),
    "encodec": Published("EnCodec", Shape(4800, 1024, 128), stages=8),
    "mimi": Published("Mimi", Shape(2000, 2048, 256), stages=32),
}
PUBLISHED_SHAPES = tuple(model.shape for model in PUBLISHED.values())
# This maps the shape of a stage to the number of stages.
RESIDUAL_SHAPES = {model.shape: model.stages for model in PUBLISHED.values() if model.stages > 1}
# The sweep varies one of N, K and D at a time, from this point.
_POINT = Shape(4096, 8192, 64)
SWEEP_SHAPES = (
    *(_POINT._replace(n=n) for n in (64, 512, 4096, 32768)),
    *(_POINT._replace(k=k) for k in (128, 1024, 65536)),
    *(_POINT._replace(d=d) for d in (4, 16, 256)),
)
# Published models have these shapes: the reference VQ-VAE on CIFAR-10, DAC's and LlamaGen's low
# dimension, GCP-VQVAE's rows, VQGAN's wide codes, SimVQ's large codebook.
SEARCH_SHAPES = (
    Shape(2048, 512, 64),
    Shape(16384, 1024, 8),
    Shape(16384, 8192, 64),
    Shape(8192, 16384, 8),
    Shape(4096, 16384, 256),
    Shape(2048, 65536, 32),
)
LAYER_SHAPES = (Shape(2048, 512, 64), Shape(2048, 8192, 64))
# The targets for GPUs are about these sizes.
TARGET_SHAPES = tuple(Shape(65536, k, d) for k in (8192, 65536, 1 << 20) for d in (8, 64, 256))
GPU_LAYER_SHAPES = (
    Shape(2048, 512, 64),
    Shape(4096, 8192, 32),
    Shape(26624, 8192, 64),
    Shape(16384, 65536, 128),
)
SUM_SHAPES = (Shape(65536, 8192, 64), Shape(65536, 65536, 256), Shape(524288, 512, 64))
TINY_SHAPES = (Shape(96, 40, 8), Shape(33, 70, 16))


class Vectors(NamedTuple):
    """z [N, D] and codebook [K, D], contiguous, and their source."""

    z: Tensor
    codebook: Tensor
    source: str

    @property
    def shape(self) -> Shape:
        """The shape (N, K, D)."""
        return Shape(self.z.shape[0], *self.codebook.shape)


def gaussian(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Vectors:
    """Draw standard normal z and codebook; each kind of device draws different numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    z = torch.randn(shape.n, shape.d, generator=generator, device=device)
    codebook = torch.randn(shape.k, shape.d, generator=generator, device=device)
    return Vectors(z.to(dtype), codebook.to(dtype), "Gaussian")


def gaussian_stages(
    shape: Shape, stages: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Draw z [N, D] and codebooks [stages, K, D]; each book roughly fits its stage's residuals."""
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(shape.n, shape.d, generator=generator, device=device)
    codebooks = torch.randn(stages, shape.k, shape.d, generator=generator, device=device)
    return z, codebooks * 0.7 ** torch.arange(stages, device=device)[:, None, None]


def from_npz(path: Path, dtype: torch.dtype = torch.float32) -> Vectors:
    """Read z [N, D] and codebook [K, D] of a trained model from a .npz with these two arrays.

    Raises:
        ValueError: the file has other arrays or shapes that do not fit, or is a pipe or a device.
    """
    check_regular(path)
    with path.open("rb") as file, np.load(file) as arrays:  # numpy does not close damaged files
        missing = {"z", "codebook"} - set(arrays.files)
        if missing:
            raise ValueError(f"{path} must hold arrays z and codebook, {sorted(missing)} missing")
        z, codebook = (torch.from_numpy(arrays[name]).to(dtype) for name in ("z", "codebook"))
    if z.dim() != 2 or codebook.dim() != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"z must be [N, D] and codebook [K, D], got {list(z.shape)} and {list(codebook.shape)}"
        )
    return Vectors(z.contiguous(), codebook.contiguous(), "trained")


@torch.no_grad()
def from_run(run: Path, rows: int = 16384, dtype: torch.dtype = torch.float32) -> Vectors:
    """Compute latents of held-out crops and read the codebook of a ``vqvae-fast train`` run.

    Args:
        run: the run folder; its own data is opened again.
        rows: N, the number of vectors.
        dtype: the dtype of both.

    Raises:
        UserError: ``run`` is not a run folder, or its data no longer exists.
    """
    from vqvae_fast.training import load_model, open_data
    from vqvae_fast.training.runfolder import read_config

    model, config = load_model(run), read_config(run)
    images = open_data(
        config.data, photographs=config.photographs, crop=config.crop, held_out=config.held_out
    )
    per_crop = (images.crop // 2**config.downsampling) ** 2
    crops = images.validation(-(-rows // per_crop)).split(256)
    latents = [rows_of(model.pre_quantization_conv(model.encoder(part))) for part in crops]
    z, codebook = torch.cat(latents)[:rows], model.vector_quantization.codebook
    return Vectors(z.to(dtype).contiguous(), codebook.to(dtype).contiguous(), "trained")


def feature_map(z: Tensor, side: int = 8) -> Tensor:
    """Arrange z [N, D] as a feature map [B, D, side, side], or [1, D, N, 1] if N does not fit."""
    rows, dim = z.shape
    if rows % (side * side):
        return z.T.reshape(1, dim, rows, 1).contiguous()
    return z.view(-1, side, side, dim).permute(0, 3, 1, 2).contiguous()


def rows_of(fmap: Tensor) -> Tensor:
    """Return the rows [N, D] of a feature map [B, D, h, w]: the inverse of :func:`feature_map`."""
    return fmap.permute(0, 2, 3, 1).reshape(-1, fmap.shape[1])
