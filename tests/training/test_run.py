import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vqvae_fast.training import TrainConfig, UserError, load_model, resume, train
from vqvae_fast.training.data import open_data
from vqvae_fast.training.evaluation import evaluate
from vqvae_fast.training.loop import Trainer


@pytest.fixture(autouse=True)
def _quick(no_pictures):
    """The pictures are tested in test_pictures.py; they take longer than all of this."""


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def elsewhere(config: TrainConfig, name: str, **changes: object) -> TrainConfig:
    return dataclasses.replace(config, out=str(Path(config.out).with_name(name)), **changes)


def test_run_folder_holds_what_is_promised(tiny):
    result = train(tiny)
    assert sorted(path.name for path in result.run.iterdir()) == [
        ".lock",
        "checkpoint.pt",
        "config.json",
        "metrics.jsonl",
        "result.json",
    ]
    config = json.loads((result.run / "config.json").read_text())
    assert TrainConfig.from_dict(config) == tiny
    assert [row["step"] for row in rows(result.run)] == [3, 4, 6, 8, 9, 12]
    assert [row["step"] for row in rows(result.run) if "held_out_psnr" in row] == [4, 8, 12]
    recorded = json.loads((result.run / "result.json").read_text())
    assert recorded["held_out"]["psnr"] == result.held_out.psnr
    assert recorded["step"] == result.step == 12
    assert not result.interrupted


def test_result_is_what_the_saved_model_does_to_the_held_out_crops(tiny):
    result = train(tiny)
    data = open_data(tiny.data)
    x = data.validation(tiny.eval_crops)
    model = load_model(result.run)
    with torch.no_grad():
        error = ((model(x)[1] - x) / 2).square().mean().item()
        used = model.encode(x).unique().numel()
    assert result.held_out.mse == pytest.approx(error, rel=1e-5)
    assert result.held_out.psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert result.held_out.codes_used == used
    assert rows(result.run)[-1]["held_out_mse"] == result.held_out.mse


@pytest.mark.quick(1)
@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
def test_same_seed_same_bits_and_another_seed_others(tiny, quantizer):
    tiny = dataclasses.replace(tiny, quantizer=quantizer)
    first = train(tiny)
    torch.manual_seed(99)  # the caller's random state has no part in it
    second = train(elsewhere(tiny, "again"))
    third = train(elsewhere(tiny, "other", seed=1))
    read = [(run / "metrics.jsonl").read_bytes() for run in (first.run, second.run, third.run)]
    assert read[0] == read[1] != read[2]
    assert same(weights(first.run), weights(second.run))


@pytest.mark.quick(1)
@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)]
)
def test_resumed_run_repeats_the_whole_run_bit_for_bit(tiny, quantizer, stop):
    tiny = dataclasses.replace(tiny, quantizer=quantizer)
    whole = train(tiny)
    part = train(elsewhere(tiny, "part", steps=stop))
    resumed = resume(part.run, steps=tiny.steps)
    assert (whole.run / "metrics.jsonl").read_bytes() == (part.run / "metrics.jsonl").read_bytes()
    assert same(weights(whole.run), weights(part.run))
    assert resumed.held_out.mse == whole.held_out.mse
    assert resumed.training.mse == whole.training.mse


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own insides
def test_a_compiled_run_follows_the_eager_one(tiny):
    eager = train(tiny)
    compiled = train(elsewhere(tiny, "compiled", compile=True))
    assert compiled.held_out.mse == pytest.approx(eager.held_out.mse, rel=1e-3)
    assert not same(weights(compiled.run), weights(eager.run))  # other kernels, other roundings


@pytest.mark.slow
def test_resume_in_the_middle_of_kmeans_collection(tiny):
    # 4 images of 4x4 latents a step: the 256 samples are complete after four.
    tiny = dataclasses.replace(tiny, codebook_size=64)
    whole = train(tiny)
    part = train(elsewhere(tiny, "part", steps=2))
    (samples,) = torch.load(part.run / "checkpoint.pt", weights_only=True)["samples"].values()
    assert len(samples) == 128
    resume(part.run, steps=12)
    assert same(weights(whole.run), weights(part.run))


def test_resume_drops_the_rows_behind_the_checkpoint(tiny):
    whole = train(tiny)
    expected = (whole.run / "metrics.jsonl").read_bytes()
    part = train(elsewhere(tiny, "part", steps=6))
    # as a run leaves it that is killed between two checkpoints, while it writes a line
    with (part.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 0}\n{"step": 12, "lo')
    resume(part.run, steps=12)
    assert (part.run / "metrics.jsonl").read_bytes() == expected


def test_callers_random_state_is_left_alone(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tiny)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("quantizer", ["ema", pytest.param("gradient", marks=pytest.mark.slow)])
def test_training_on_photographs_learns(tiny, quantizer):
    config = dataclasses.replace(
        tiny,
        data="photos",
        crop=16,
        quantizer=quantizer,
        codebook_size=64,
        dim=16,
        h_dim=32,
        res_h_dim=16,
        batch_size=8,
        steps=60,
        lr=2e-3,
        eval_every=60,
        eval_crops=64,
    )
    result = train(config)
    first, last = rows(result.run)[0], rows(result.run)[-1]
    # measured: a third of the first error with ema, a half with gradient
    assert last["mse"] < 0.7 * first["mse"]
    assert result.held_out.mse < 0.7 * first["mse"]


def test_loss_is_mse_over_variance_plus_embedding_loss(tiny):
    data = open_data(tiny.data)
    torch.manual_seed(0)
    trainer = Trainer(dataclasses.replace(tiny, quantizer="gradient"), data, data.variance())
    x = data.batch(0, 0, 4)
    loss, x_hat, _ = trainer.model(x)
    expected = (x_hat - x).square().mean() / data.variance() + loss
    row = None
    while row is None:
        row = trainer.advance()
        if trainer.step == 1:
            state = trainer.window.state()
            assert float(state["sums"][0]) == pytest.approx(expected.item(), rel=1e-6)
    assert trainer.step == 3


def test_gradient_recipe_is_the_references(tiny):
    data = open_data(tiny.data)
    trainer = Trainer(dataclasses.replace(tiny, quantizer="gradient"), data, 1.0)
    config = trainer.model.config
    assert config["legacy"]
    assert config["shared_residual"]
    assert config["relu_skip"]
    codes = trainer.model.vector_quantization.codebook
    assert codes.requires_grad
    assert codes.abs().max() <= 1 / tiny.codebook_size
    assert trainer.optimizer.defaults["amsgrad"]


def test_ema_codebook_is_no_parameter_of_the_optimizer(tiny):
    trainer = Trainer(tiny, open_data(tiny.data), 1.0)
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert id(trainer.model.vector_quantization.codebook) not in optimised
    assert len(optimised) == len(list(trainer.model.parameters()))


def test_evaluation_learns_nothing_and_does_not_depend_on_the_batch_size(tiny):
    data = open_data(tiny.data)
    trainer = Trainer(tiny, data, 1.0)
    for _ in range(3):
        trainer.advance()
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    images = data.validation(7)
    one, all_together = (evaluate(trainer.model, images, batch_size=n) for n in (1, 7))
    assert same(before, trainer.model.state_dict())
    assert trainer.model.training
    assert one.mse == pytest.approx(all_together.mse, rel=1e-5)
    assert torch.equal(one.counts, all_together.counts)


def test_bf16_and_grey_images(tiny, tmp_path, rng):
    np.save(tmp_path / "grey.npy", rng.random((20, 16, 16, 1), dtype=np.float32))
    config = dataclasses.replace(tiny, data=str(tmp_path / "grey.npy"), dtype="bf16", steps=3)
    result = train(config)
    assert math.isfinite(result.held_out.mse)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_default_run_names_are_new_ones(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(tiny, out=None, steps=1)
    assert [str(train(config).run) for _ in range(2)] == ["runs/tiny-ema-1", "runs/tiny-ema-2"]


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(tiny):
    config = dataclasses.replace(tiny, steps=40, lr=1e18)
    with pytest.raises(UserError, match=r"diverged.*smaller lr"):
        train(config)


def test_other_data_than_the_runs_is_refused(tiny, rng):
    part = train(dataclasses.replace(tiny, steps=3))
    other = rng.integers(128, size=(20, 16, 16, 3), dtype=np.uint8)
    np.save(tiny.data, other)
    before = (part.run / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"not what .* was trained on"):
        resume(part.run, steps=6)
    assert (part.run / "checkpoint.pt").read_bytes() == before


def test_nothing_left_to_do_is_said(tiny):
    result = train(dataclasses.replace(tiny, steps=3))
    with pytest.raises(UserError, match="step 3 of 3 already"):
        resume(result.run)


def test_dataset_from_python(tiny):
    images = torch.rand(12, 3, 16, 16)
    config = dataclasses.replace(tiny, steps=2)
    run = train(config, TensorDataset(images), validation=TensorDataset(images[:4])).run
    resumed = resume(run, TensorDataset(images), validation=TensorDataset(images[:4]), steps=4)
    assert resumed.step == 4


def test_ema_recipe_does_not_let_the_codebook_die(tiny):
    trainer = Trainer(tiny, open_data(tiny.data), 1.0)
    quantizer = trainer.model.config["quantizer"]
    # 4 crops of 4x4 latents over 16 codes: 4 vectors a code, a quarter of it
    assert quantizer["dead_code_threshold"] == 1.0
    assert quantizer["kmeans_init"]


@pytest.mark.slow
def test_compiled_step_is_the_step(tiny, monkeypatch):
    """What is handed to torch.compile is what runs; its own failures are told in one sentence."""
    compiled = []

    def record(function):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    plain = train(tiny)
    assert compiled == []
    recorded = train(elsewhere(tiny, "compiled", compile=True))
    assert len(compiled) == 1
    assert same(weights(plain.run), weights(recorded.run))

    def no_compiler(function):
        def fail(x):
            error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})
            raise error("no C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(
        UserError, match=r"torch\.compile does not work here: no C.. compiler found$"
    ):
        train(elsewhere(tiny, "broken", compile=True))


def test_run_that_ended_before_its_pictures_is_finished(tiny):
    result = train(dataclasses.replace(tiny, steps=6))
    measured = json.loads((result.run / "result.json").read_text())
    (result.run / "result.json").unlink()
    before = (result.run / "metrics.jsonl").read_bytes()
    again = resume(result.run)
    assert (again.step, again.held_out.mse) == (6, result.held_out.mse)
    assert json.loads((result.run / "result.json").read_text())["held_out"] == measured["held_out"]
    assert (result.run / "metrics.jsonl").read_bytes() == before
