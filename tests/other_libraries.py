"""Modules of the libraries whose quantizers ours are compared with; they may not be installed."""

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

import pytest
from torch import nn


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


def residual_quantizer_of_dac(
    monkeypatch: pytest.MonkeyPatch, channels: int, stages: int, codes: int, dims: Any
) -> nn.Module:
    """descript-audio-codec's; ``dims`` is D, or a list with that of each stage."""
    library = inner_module(monkeypatch, "dac.nn.quantize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its weight normalisation is the old one
        return library.ResidualVectorQuantize(channels, stages, codes, dims, quantizer_dropout=0.5)


def residual_quantizer_of_dac_in_transformers(
    channels: int, stages: int, codes: int, dim: int
) -> nn.Module:
    library = installed("transformers.models.dac.modeling_dac")
    config = library.DacConfig(
        n_codebooks=stages, codebook_size=codes, codebook_dim=dim, quantizer_dropout=0.5
    )
    config.hidden_size = channels
    return library.DacResidualVectorQuantizer(config)
