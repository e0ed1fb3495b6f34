"""accelerate() on the image tokenizers of transformers and on diffusers' VQModel."""

import copy
import types

import pytest
import torch
from other_libraries import installed
from same_results import (
    accelerated,
    assert_nearest,
    assert_same,
    assert_undone,
    count_of_misses,
    outcome,
)
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from vqvae_fast import accelerate, compare

K, D = 48, 6


def _of_transformers(name: str, prefix: str) -> nn.Module:
    library = installed(f"transformers.models.{name}.modeling_{name}")
    config = types.SimpleNamespace(
        num_embeddings=K, codebook_size=K, embed_dim=D, beta=0.4, num_patches=4
    )
    return getattr(library, f"{prefix}VQVAEVectorQuantizer")(config)


def _of_diffusers(**options) -> nn.Module:
    library = installed("diffusers.models.autoencoders.vae")
    return library.VectorQuantizer(K, D, beta=0.4, **options)


def _remapped(tmp_path, unknown: str) -> nn.Module:
    numpy = pytest.importorskip("numpy")
    numpy.save(tmp_path / "used.npy", torch.arange(0, K, 3).numpy())
    return _of_diffusers(remap=str(tmp_path / "used.npy"), unknown_index=unknown)


QUANTIZERS = {
    "Chameleon": lambda _: _of_transformers("chameleon", "Chameleon"),
    "Janus": lambda _: _of_transformers("janus", "Janus"),
    "GLM-Image": lambda _: _of_transformers("glm_image", "GlmImage"),
    "Emu3": lambda _: _of_transformers("emu3", "Emu3"),
    "diffusers": lambda _: _of_diffusers(),
    "diffusers, not legacy": lambda _: _of_diffusers(legacy=False),
    "diffusers, sane shape": lambda _: _of_diffusers(sane_index_shape=True),
    "diffusers, remapped": lambda path: _remapped(path, "random"),
    "diffusers, extra": lambda path: _remapped(path, "extra"),
}


@pytest.fixture(params=QUANTIZERS)
def name(request):
    return request.param


@pytest.fixture
def module(name, tmp_path):
    torch.manual_seed(0)
    module = QUANTIZERS[name](tmp_path)
    nn.init.normal_(module.embedding.weight)
    return module


@pytest.fixture
def z(name):
    torch.manual_seed(1)
    return torch.randn(2, 3, D, 4, 4) if name == "Emu3" else torch.randn(2, D, 4, 5)


def _indices(result) -> Tensor:
    if isinstance(result, Tensor):
        return result
    return result[2][2] if isinstance(result[2], tuple) else result[2]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_everything_is_as_before(module, z, training, gradients):
    module.train(training)
    ours = accelerated(module)
    with torch.set_grad_enabled(gradients):
        for _ in range(2):  # the second search finds the codes packed
            assert_same(outcome(ours, z), outcome(module, z))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_frozen_parts(module, z, frozen):
    module.eval().requires_grad_(not frozen)
    ours = accelerated(module)
    assert_same(outcome(ours, z), outcome(module, z))


@torch.no_grad()
def test_codes_are_the_nearest_where_the_original_misses_them(name, module):
    if "remapped" in name or "extra" in name:
        pytest.skip("its indices are not codes")
    nn.init.normal_(module.embedding.weight, mean=300.0)
    z = module.embedding.weight[torch.randint(K, (2 * 8 * 8,))]
    z = (z + 0.9 * torch.randn_like(z)).view(2, 8, 8, D).permute(0, 3, 1, 2)
    rows, codebook = z.permute(0, 2, 3, 1), module.embedding.weight
    if name == "GLM-Image":
        rows, codebook = (nn_functional.normalize(part, dim=-1) for part in (rows, codebook))
    given = z.unsqueeze(1) if name == "Emu3" else z
    module.eval()
    ours = accelerated(module)
    assert_nearest(_indices(ours(given)), rows, codebook)
    assert count_of_misses(_indices(module(given)), rows, codebook) > 0
    (judged,) = compare(module, given)
    assert judged.vectors == 128
    assert judged.ours_nearer > 0
    assert judged.theirs_nearer == 0


@pytest.mark.parametrize("training", [False, True])
def test_special_values_are_as_before(module, z, training):
    z[0, ..., 1, 2] = torch.nan
    z[1, ..., 0, 0] = torch.inf
    module.train(training)
    ours = accelerated(module)
    with torch.no_grad():
        assert_same(outcome(ours, z), outcome(module, z))


def test_empty_batches_are_as_before(module, z):
    if getattr(module, "remap", None) is not None:
        pytest.skip("the original cannot renumber no codes")
    ours = accelerated(module)
    assert_same(outcome(ours, z[:0]), outcome(module, z[:0]))


@pytest.mark.parametrize("training", [False, True])
def test_sixteen_bits_keep_their_dtypes(module, z, training):
    module.train(training).bfloat16()
    ours = accelerated(module)
    found, expected = (outcome(part, z.bfloat16()) for part in (ours, module))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
    ours.double()
    assert_same(outcome(ours, z.double()), outcome(module.double(), z.double()))


@pytest.mark.parametrize("training", [False, True])
def test_autocast(module, z, training):
    module.train(training)
    ours = accelerated(module)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = outcome(ours, z), outcome(module, z)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_undo(module, z):
    assert_undone(module, z)


def test_a_hook_of_the_table_is_called(name, module, z):
    if name in ("Emu3", "GLM-Image"):
        pytest.skip("the original does not call the table")
    ours = accelerated(module)
    seen = []
    ours.embedding.register_forward_hook(lambda *_: seen.append(1))
    assert_same(outcome(ours, z), outcome(module, z))
    assert seen == [1]


def test_a_table_with_sparse_gradients_keeps_them(name, module, z):
    if name in ("Emu3", "GLM-Image"):
        pytest.skip("the original does not call the table")
    module.embedding.sparse = True
    ours = accelerated(module)
    found, expected = outcome(ours, z), outcome(module, z)
    assert any(isinstance(part, Tensor) and part.is_sparse for part in expected)
    dense = [
        [part.to_dense() if isinstance(part, Tensor) and part.is_sparse else part for part in each]
        for each in (found, expected)
    ]
    assert [part.is_sparse for part in found if isinstance(part, Tensor)] == [
        part.is_sparse for part in expected if isinstance(part, Tensor)
    ]
    assert_same(*dense)


def test_a_subclass_with_its_own_forward_is_left(module):
    other = type("Mine", (type(module),), {"forward": lambda self, z: z})
    module = copy.copy(module)
    module.__class__ = other
    done = accelerate(module, quiet=True)
    assert done.accelerated == []
    assert [place.about for place in done.left] == ["it has its own forward"]


def test_the_report_names_the_quantizer_and_no_other_part_of_the_model():
    library = installed("transformers.models.chameleon.modeling_chameleon")
    config = library.ChameleonVQVAEConfig(
        num_embeddings=K, embed_dim=32, latent_channels=32, base_channels=32, resolution=32
    )
    done = accelerate(library.ChameleonVQVAE(config), quiet=True)
    assert str(done).splitlines() == [
        "vqvae_fast accelerates 1 quantizer",
        "  quantize (ChameleonVQVAEVectorQuantizer): K=48, D=32",
    ]
