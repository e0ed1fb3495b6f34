"""This package's VectorQuantizer, learning by moving averages or by gradient."""

from typing import Any, Literal

from torch import Tensor

from benchmarks.peers.base import LayerPeer, Step, training_step


def _unavailable() -> str | None:
    try:
        import vqvae_fast.nn  # noqa: F401
    except ModuleNotFoundError as error:
        return f"vqvae_fast.nn is not there: {error}"
    return None


def _build(learning: Literal["ema", "gradient"], fmap: Tensor, codebook: Tensor) -> Step:
    from vqvae_fast.nn import VectorQuantizer

    num_codes, dim = codebook.shape
    layer: Any = VectorQuantizer(num_codes, dim, 0.25, learning=learning)
    layer.to(fmap.device).train()
    layer.set_codebook(codebook)

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        loss, quantized, *_ = layer(z)
        layer.zero_grad(set_to_none=True)
        return quantized, loss

    return training_step(forward, fmap)


PEERS = (
    LayerPeer(
        "ours (EMA)",
        "VectorQuantizer(learning='ema'): search, gather, losses, EMA update, backward",
        lambda fmap, codebook: _build("ema", fmap, codebook),
        "ema",
        _unavailable,
    ),
    LayerPeer(
        "ours (gradient)",
        "VectorQuantizer(learning='gradient'): search, gather, losses, backward to z and codebook",
        lambda fmap, codebook: _build("gradient", fmap, codebook),
        "gradient",
        _unavailable,
    ),
)
