import contextlib
import json
import os
import pickle
import zipfile

import pytest
import torch

from vqvae_fast.atomic import atomic_file
from vqvae_fast.training import UserError, load_model, resume
from vqvae_fast.training.checkpoint import load_checkpoint, save_checkpoint
from vqvae_fast.training.runfolder import read_config


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


COLLECTOR = "vector_quantization.kmeans"


def nest(run, depth: int = 200_000) -> None:
    """Put nested lists in the place of the word NESTED; pickle itself cannot write that many."""
    path, word = run / "checkpoint.pt", b"X\x06\x00\x00\x00NESTED"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(word, b"]" * depth + b"a" * (depth - 1)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.update(step=-1), "its step is negative"),
        (lambda state: state.update(step="3"), "step must be int, got str"),
        (lambda state: state.update(step=True), "step must be int, got bool"),
        (lambda state: state.update(step=2), "optimizer must have done 2 steps"),
        (lambda state: state.update(variance=torch.zeros(2)), "variance must be float, got Tensor"),
        (lambda state: state.update(random=[]), "has no random states"),
        (lambda state: state.update(random=[{}]), "states of torch's generators"),
        (lambda state: state.update(random=[{"cpu": torch.zeros(3)}]), "torch's generators"),
        (lambda state: state.update(window={}), "window must hold sums"),
        (lambda state: state["window"].update(steps=-1), "window must hold sums"),
        (lambda state: state["window"].update(sums=torch.zeros(1)), "window must hold sums"),
        (lambda state: state["window"].update(steps=10**30), "window must hold sums"),
        (lambda state: state["window"].update(sums=torch.zeros(3).to_sparse()), "dense tensor"),
        (lambda state: state["window"].update(sums=torch.full((3,), torch.nan)), "be finite"),
        (lambda state: state.update(random=[torch.zeros(3)]), "states of torch's generators"),
        (lambda state: state.update(samples=[1]), "samples must be a dict, got list"),
        (lambda state: state["samples"].update({COLLECTOR: "x"}), "kmeans must be a dense tensor"),
        (lambda state: state["samples"].update({COLLECTOR: torch.zeros(2)}), "must be floats"),
        (lambda state: state["samples"].update({COLLECTOR: torch.zeros(2, 1)}), "samples must be"),
        (
            lambda state: state["optimizer"]["state"][3]["exp_avg_sq"].fill_(-1),
            "exp_avg_sq of parameter 3 must not be negative",
        ),
        (lambda state: state.update(optimizer={}), "averages of 22 parameters"),
        (lambda state: state["optimizer"].update(state={}), "averages of 22 parameters"),
        (lambda state: state["optimizer"]["state"].pop(3), "averages of 22 parameters"),
        (lambda state: state["optimizer"]["state"][3].pop("exp_avg"), "hold step, exp_avg"),
        (
            lambda state: state["optimizer"]["state"][3].update(exp_avg=torch.zeros(1)),
            "exp_avg of parameter 3 must be a tensor",
        ),
        (lambda state: state["optimizer"]["state"][3].update(step=None), "step of parameter 3"),
        (lambda state: state["optimizer"].update(state="NESTED"), "averages of 22 parameters"),
        (lambda state: state.update(optimizer="NESTED"), "optimizer must be dict, got list"),
        (lambda state: state.update(random=["NESTED"]), "states of torch's generators"),
        (lambda state: state["window"].update(sums="NESTED"), "window must hold sums"),
        (lambda state: state.update(model={5: torch.zeros(1)}), "must be strings, got 5"),
        (lambda state: state["model"].update(x="NESTED"), "x must be a dense tensor"),
        (lambda state: state["model"].popitem(), "weights are of another model"),
        (
            lambda state: state["model"]["pre_quantization_conv.weight"].fill_(float("nan")),
            "a weight or a code is NaN or Inf",
        ),
    ],
)
def test_odd_values_in_a_checkpoint_are_told(run, change, sentence):
    state = load_checkpoint(run)
    change(state)
    save_checkpoint(run, state)
    nest(run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UserError, match=sentence):
        resume(run, steps=6)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_embeddings": 10**12}, r"would be \[1000000000000, 4\]"),
        ({"n_res_layers": 10**9}, "n_res_layers must be at most 1000"),
        ({"downsampling": 10**9}, "downsampling must be at most 16"),
        ({"downsampling": "2"}, "does not fit the model"),
        ({"quantizer": "NESTED"}, "does not fit the model"),
        ({5: 5}, "does not fit the model"),
    ],
)
def test_odd_sizes_of_the_model_are_told_without_memory_for_it(run, change, sentence):
    state = load_checkpoint(run)
    state["model_config"].update(change)
    save_checkpoint(run, state)
    nest(run)
    with pytest.raises(UserError, match=sentence):
        load_model(run)


def test_optimizer_settings_are_the_configs(run):
    """A file cannot bring others, or values that Adam does not expect."""
    state = load_checkpoint(run)
    state["optimizer"]["param_groups"] = [{"betas": "odd"}]
    save_checkpoint(run, state)
    assert resume(run, steps=6).step == 6


def test_a_compressed_checkpoint_is_refused(run):
    """A small one could ask for any amount of memory."""
    path = run / "checkpoint.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="it is compressed"):
        load_model(run)


def test_brackets_without_end_in_config_and_metrics_are_told(run):
    for name in ("config.json", "metrics.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(b"[" * 200_000 + b"\n")
        before = {path: path.read_bytes() for path in run.iterdir()}
        with pytest.raises(UserError, match=rf"{name} .*nested too deeply"):
            resume(run, steps=6)
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        (run / name).write_bytes(content)


@pytest.mark.parametrize("odd", [None, True, -1, 0.5, 1e300, "", "x", [], [1], {}, {"a": 1}])
def test_a_setting_of_any_type_is_taken_or_told_in_a_sentence(run, odd):
    config = json.loads((run / "config.json").read_text())
    for name in config:
        (run / "config.json").write_text(json.dumps(config | {name: odd}))
        with contextlib.suppress(UserError):
            assert getattr(read_config(run), name) in (odd, ())


def test_pipes_in_a_run_folder_are_not_opened(run):
    for name in ("checkpoint.pt", "config.json", "metrics.jsonl", ".lock"):
        (run / name).rename(run / "kept")
        os.mkfifo(run / name)
        with pytest.raises(UserError):
            resume(run, steps=6)
        assert (run / name).is_fifo()
        (run / "kept").rename(run / name)
