"""This package's VectorQuantizer, learning by moving averages or by gradient."""

from typing import Any, Literal

from torch import Tensor

from vqvae_fast.bench.peers.base import LayerPeer, Search, Step, inference, training_step


def _unavailable() -> str | None:
    try:
        import vqvae_fast.nn  # noqa: F401
    except ModuleNotFoundError as error:
        return f"vqvae_fast.nn is not there: {error}"
    return None


def _layer(learning: Literal["ema", "gradient"], codebook: Tensor) -> Any:
    from vqvae_fast.nn import VectorQuantizer

    num_codes, dim = codebook.shape
    layer = VectorQuantizer(num_codes, dim, 0.25, learning=learning).to(codebook.device)
    layer.set_codebook(codebook)
    return layer


def _infer(learning: Literal["ema", "gradient"], fmap: Tensor, codebook: Tensor) -> Search:
    layer = _layer(learning, codebook).eval()
    return inference(lambda z: layer(z)[1], fmap)


def _build(learning: Literal["ema", "gradient"], fmap: Tensor, codebook: Tensor) -> Step:
    layer = _layer(learning, codebook).train()

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
        lambda fmap, codebook: _infer("ema", fmap, codebook),
        "ema",
        _unavailable,
    ),
    LayerPeer(
        "ours (gradient)",
        "VectorQuantizer(learning='gradient'): search, gather, losses, backward to z and codebook",
        lambda fmap, codebook: _build("gradient", fmap, codebook),
        lambda fmap, codebook: _infer("gradient", fmap, codebook),
        "gradient",
        _unavailable,
    ),
)
