"""The file of tile sizes: what it says is used, and a wrong one ends in a sentence."""

import json

import pytest

pytest.importorskip("triton")

import torch
from triton.backends.compiler import GPUTarget

from vqvae_fast import settings
from vqvae_fast.backends.triton import tiles
from vqvae_fast.backends.triton.configurations import Configuration, configuration

OWN = Configuration(128, 128, 64, 8, 8, 3)
OTHER = Configuration(64, 256, 64, 16, 4, 2)


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Names a file with this content in the settings."""

    def name(content: str):
        path = tmp_path / "tiles.json"
        path.write_text(content)
        tiles._architectures.cache_clear()
        monkeypatch.setattr(settings, "current", settings.read({"VQVAE_FAST_TILES": str(path)}))

    yield name
    tiles._architectures.cache_clear()


def content(arch="90", dtype="float16", block="64", entry=None):
    return json.dumps({"architectures": {arch: {dtype: {block: entry or OTHER._asdict()}}}})


def test_without_a_file_the_package_s_own_are_used(monkeypatch):
    monkeypatch.setattr(settings, "current", settings.read({}))
    assert tiles.tuned(OWN, 90, torch.float16) is OWN


def test_an_entry_is_for_its_architecture_type_and_rows(use):
    use(content())
    assert tiles.tuned(OWN, 90, torch.float16) == OTHER
    assert tiles.tuned(OWN, 80, torch.float16) == OWN
    assert tiles.tuned(OWN, 90, torch.float32) == OWN
    assert tiles.tuned(OWN._replace(block_dim=32), 90, torch.float16) == OWN._replace(block_dim=32)


def test_the_search_takes_it(use, monkeypatch):
    import triton

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    arch = "interpreter" if triton.knobs.runtime.interpret else "90"
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    use(content(arch))
    assert configuration(64, torch.float16) == OTHER
    assert configuration(32, torch.float16).block_rows == 128


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block_rows": 48}, "must have a power of two as block_rows, got 48"),
        ({"block_codes": 8}, "must have block_codes from 16 to 512, got 8"),
        ({"num_warps": "4"}, "must have num_warps from 1 to 16, got '4'"),
        ({"num_warps": True}, "must have num_warps from 1 to 16, got True"),
        ({"num_stages": 0}, "must have num_stages from 1 to 8, got 0"),
        ({"block_dim": 32}, "must have block_dim 64, got 32"),
        ({"block_codes": 16, "group": 32}, "must have group at most block_codes, got 32"),
        ({"more": 1}, "must have the fields block_rows, block_codes"),
    ],
    ids=str,
)
def test_a_wrong_entry_ends_in_a_sentence(use, change, sentence):
    use(content(entry=OTHER._asdict() | change))
    with pytest.raises(ValueError, match=r"VQVAE_FAST_TILES=.*the entry for 90, float16, 64") as e:
        tiles.tuned(OWN, 90, torch.float16)
    assert sentence in str(e.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "must be a JSON file"),
        ("[]", "must hold"),
        ('{"architectures": 3}', "must hold"),
        ('{"architectures": {"90": {"float16": 3}}}', "must hold"),
    ],
)
def test_a_wrong_file_ends_in_a_sentence(use, text, sentence):
    use(text)
    with pytest.raises(ValueError, match=sentence):
        tiles.tuned(OWN, 90, torch.float16)


def test_a_missing_file_ends_in_a_sentence(use, tmp_path):
    use("{}")
    (tmp_path / "tiles.json").unlink()
    with pytest.raises(ValueError, match=r"must be a JSON file: .*No such file"):
        tiles.tuned(OWN, 90, torch.float16)
