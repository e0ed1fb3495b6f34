import dataclasses
import json
import os
import pickle
import zipfile

import pytest
import torch

from vqvae_fast.training import UserError, load_model, resume, train
from vqvae_fast.training.atomic import atomic_file
from vqvae_fast.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def run(tiny, no_pictures):
    return train(dataclasses.replace(tiny, steps=3)).run


def test_checkpoint_loads_without_running_code(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    assert load_model(run).config == state["model_config"]
    assert not load_model(run).training


def test_checkpoint_is_replaced_whole_or_not_at_all(run, monkeypatch):
    before = (run / "checkpoint.pt").read_bytes()
    listing = sorted(os.listdir(run))

    def fail_half_way(state, path):
        path.write_bytes(b"half a checkp")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, {})
    assert (run / "checkpoint.pt").read_bytes() == before
    assert sorted(os.listdir(run)) == listing


@pytest.mark.parametrize("name", ["a.png", "n" * 251 + ".png", "a." + "s" * 253])
def test_atomic_file_writes_every_legal_name(tmp_path, name):
    with atomic_file(tmp_path / name) as temporary:
        # Formats are chosen by the suffix, and some writers put the name into the file.
        assert temporary.name == name
        temporary.write_bytes(b"x")
        assert not (tmp_path / name).exists()
    assert (tmp_path / name).read_bytes() == b"x"
    assert os.listdir(tmp_path) == [name]


def test_full_disk_is_told(run, monkeypatch):
    def fail(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="is the disk full"):
        save_checkpoint(run, {})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint_is_told_and_left_as_it_is(run, share):
    path = run / "checkpoint.pt"
    cut = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(cut)
    for use in (load_model, lambda run: resume(run, steps=6)):
        with pytest.raises(UserError, match=r"checkpoint\.pt is truncated or not a checkpoint"):
            use(run)
    assert path.read_bytes() == cut


def test_one_flipped_bit_is_found(run):
    path = run / "checkpoint.pt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 256 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_model(run)


class _Intruder:
    def __reduce__(self):
        return (os.mkdir, ("intruder",))


@pytest.mark.parametrize(
    "save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))]
)
def test_checkpoint_that_would_run_code_is_refused(run, tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"format": 1, "model": _Intruder()}, run / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_model(run)
    assert not (tmp_path / "intruder").exists()


def test_other_files_of_torch_are_no_checkpoints(run):
    torch.save({"weights": torch.zeros(3)}, run / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint of vqvae-fast"):
        load_model(run)
    torch.save({"format": 1, "model": {}}, run / "checkpoint.pt")
    with pytest.raises(UserError, match=r"lacks model_config, optimizer"):
        load_model(run)


def test_checkpoint_that_does_not_fit_is_refused(run):
    state = load_checkpoint(run)
    state["model_config"]["h_dim"] = 16
    save_checkpoint(run, state)
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dim": 8}))
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        resume(run, steps=6)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"steps": 3}', '{"warp": 9}', '{"photographs": [], "steps": "x"}']
)
def test_unusable_config_is_told(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json cannot be used"):
        resume(run, steps=6)


def test_folders_that_are_no_runs_are_told(run, tmp_path):
    with pytest.raises(UserError, match="run folder not found"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.json"):
        load_model(tmp_path)
    (run / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"has no checkpoint\.pt"):
        load_model(run)
