"""The benchmark of the VQ-VAE's training step: a smoke run, and that it times what it says."""

import json

import torch

from benchmarks import training_step


def test_smoke_run_of_every_model(tmp_path, capsys):
    out = tmp_path / "step.json"
    training_step.main(["--quick", "--json", str(out)])
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    (entry,) = record["results"]
    assert list(entry["contenders"]) == list(training_step.NAMES)
    for name, line in entry["contenders"].items():
        assert line["quantizer_share"] > 0
        assert line["reference_over_it"]["median"] > 0
        assert f"| {name} " in table


def test_a_step_trains_the_whole_model():
    images = torch.rand(2, 3, 32, 32)
    for name in training_step.NAMES:
        contender = training_step.contender(name, 16)
        before = {k: v.clone() for k, v in contender.model.state_dict().items()}
        training_step.whole_step(contender, images)()
        same = [k for k, v in contender.model.state_dict().items() if torch.equal(v, before[k])]
        assert not same, (name, same)


def test_the_quantizer_gets_the_models_latents():
    images = torch.rand(2, 3, 32, 32)
    for name in training_step.NAMES:
        step = training_step.quantizer_step(training_step.contender(name, 16), images)()
        assert step.quantized.shape == step.grad_z.shape == (2, 64, 8, 8)
