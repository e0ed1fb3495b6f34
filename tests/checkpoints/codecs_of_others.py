"""The codecs' own modules, with random weights.

Nothing is downloaded. A package that is not installed is skipped, and test_audio.py has its layout:
transformers is in requirements-dev.txt, encodec, descript-audio-codec and moshi in
requirements-codecs.txt. diffusers is in neither: 61 MB for one nn.Embedding.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
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


def inner_module(monkeypatch: pytest.MonkeyPatch, name: str) -> types.ModuleType:
    """A module of a package, without what the package's __init__ imports: audio libraries."""
    *packages, _ = name.split(".")
    pytest.importorskip("einops", reason=f"{name} needs it")
    spec = importlib.util.find_spec(packages[0])
    if spec is None:
        pytest.skip(f"{packages[0]} is not installed: see requirements-codecs.txt")
    (folder,) = spec.submodule_search_locations
    for depth in range(len(packages)):
        package = types.ModuleType(".".join(packages[: depth + 1]))
        package.__path__ = ["/".join([folder, *packages[1 : depth + 1]])]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they script functions, which torch deprecates
        return importlib.import_module(name)


def installed(name: str) -> types.ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name.split('.')[0]} is not installed")


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
