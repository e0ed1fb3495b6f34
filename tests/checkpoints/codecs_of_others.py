"""The codecs' own modules, with random weights.

Nothing is downloaded. A package that is not installed is skipped, and test_audio.py has its layout:
transformers and diffusers are in requirements-dev.txt, encodec, descript-audio-codec and moshi in
requirements-codecs.txt.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

from other_libraries import inner_module, installed
from torch import Tensor, nn

B, T, Q, K, D, C = 3, 50, 4, 64, 8, 12


class Theirs(NamedTuple):
    """A module of theirs.

    Attributes:
        module: with random weights, in eval mode.
        encode: [B, C, T] -> indices [B, T, Q].
        decode: the way back, to [B, C, T].
        channels: C.
        channels_last: whether our module takes [B, T, C].
    """

    module: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    channels: int = C
    channels_last: bool = True


def randomised(module: nn.Module) -> nn.Module:
    """As if trained: codes that differ, some chosen often and some never."""
    for name, tensor in module.state_dict().items():
        if "init" in name:
            tensor.fill_(1)
        elif "cluster" in name:
            tensor.uniform_(0.5, 3)
            tensor[0] = 0
        else:
            tensor.normal_()
    return module.eval()


def diffusers(**options):
    library = installed("diffusers.models.autoencoders.vae")
    return randomised(library.VectorQuantizer(K, D, **options))


def encodec(monkeypatch, codebook_dim=None):
    core = inner_module(monkeypatch, "encodec.quantization.core_vq")
    module = randomised(
        core.ResidualVectorQuantization(
            num_quantizers=Q, dim=C, codebook_size=K, codebook_dim=codebook_dim
        )
    )
    return Theirs(
        module,
        lambda x: module.encode(x).permute(1, 2, 0),
        lambda indices: module.decode(indices.permute(2, 0, 1)),
    )


def encodec_projected(monkeypatch):
    return encodec(monkeypatch, codebook_dim=D)


def encodec_hugging_face(monkeypatch):
    library = installed("transformers.models.encodec.modeling_encodec")
    config = library.EncodecConfig(codebook_size=K, codebook_dim=D, hidden_size=D)
    module = randomised(library.EncodecResidualVectorQuantizer(config))
    return Theirs(
        module,
        lambda x: module.encode(x).permute(1, 2, 0),
        lambda indices: module.decode(indices.permute(2, 0, 1)),
        channels=D,
    )


def dac(monkeypatch):
    library = inner_module(monkeypatch, "dac.nn.quantize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its weight normalisation is the old one
        module = library.ResidualVectorQuantize(C, Q, K, D)
    return _dac(randomised(module))


def dac_hugging_face(monkeypatch):
    library = installed("transformers.models.dac.modeling_dac")
    config = library.DacConfig(n_codebooks=Q, codebook_size=K, codebook_dim=D)
    config.hidden_size = C
    return _dac(randomised(library.DacResidualVectorQuantizer(config)))


def _dac(module: nn.Module) -> Theirs:
    return Theirs(
        module,
        lambda x: module(x)[1].transpose(1, 2),
        lambda indices: module.from_codes(indices.transpose(1, 2))[0],
    )


def moshi(monkeypatch, **options):
    library = inner_module(monkeypatch, "moshi.quantization.vq")
    module = library.SplitResidualVectorQuantizer(
        n_q=Q, bins=K, dimension=D, input_dimension=C, output_dimension=C, **options
    )
    return _mimi(randomised(module))


def mimi_hugging_face(monkeypatch):
    library = installed("transformers.models.mimi.modeling_mimi")
    config = library.MimiConfig(
        hidden_size=C,
        vector_quantization_hidden_dimension=D,
        codebook_dim=D,
        codebook_size=K,
        num_quantizers=Q,
        num_semantic_quantizers=2,
    )
    return _mimi(randomised(library.MimiSplitResidualVectorQuantizer(config)))


def _mimi(module: nn.Module) -> Theirs:
    # Hugging Face's encodes to [Q, B, T], Moshi's to [B, Q, T].
    order = (1, 2, 0) if hasattr(module, "max_num_quantizers") else (0, 2, 1)
    return Theirs(
        module,
        lambda x: module.encode(x).permute(order),
        lambda indices: module.decode(indices.transpose(1, 2)),
        channels_last=False,
    )


CODECS = [
    encodec,
    encodec_projected,
    encodec_hugging_face,
    dac,
    dac_hugging_face,
    moshi,
    mimi_hugging_face,
]
