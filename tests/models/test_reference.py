"""The recorded step of the reference implementation, and its checkpoint files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vqvae_fast.models import VQVAE

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINT = GOLDEN / "reference_checkpoint.pth"


@pytest.fixture(scope="module")
def step() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "reference_step.npz") as arrays:
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def run_step(model: VQVAE, step: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recorded quantities as ``model`` computes them, in its dtype."""
    dtype = model.pre_quantization_conv.weight.dtype
    x = step["x"].to(dtype, copy=True).requires_grad_()
    latents = {}
    model.pre_quantization_conv.register_forward_hook(lambda *call: latents.update(z_e=call[2]))
    model.decoder.register_forward_pre_hook(lambda _, args: latents.update(z_q=args[0]))
    x_hat, embedding_loss, perplexity, indices = model.train().forward_with_indices(x)
    latents["z_e"].retain_grad()
    recon_loss = (x_hat - x).square().mean() / step["x_var"].to(dtype)
    loss = recon_loss + embedding_loss
    loss.backward()
    values = {
        **latents,
        "x_hat": x_hat,
        "embedding_loss": embedding_loss,
        "perplexity": perplexity,
        "indices": indices.reshape(-1, 1),
        "recon_loss": recon_loss,
        "loss": loss,
        "grad_x": x.grad,
        "grad_z_e": latents["z_e"].grad,
        **{f"grad/{name}": p.grad for name, p in model.named_parameters()},
    }
    return {name: value.detach() for name, value in values.items()}


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def test_recorded_step(step):
    ours = run_step(VQVAE.from_reference(CHECKPOINT), step)
    # The same step in float64 tells how far from the truth a float32 run may be: as far as the
    # recorded one is, give or take.
    truth = run_step(VQVAE.from_reference(CHECKPOINT).double(), step)
    assert set(ours) == set(step) - {"x", "x_var"}
    assert torch.equal(ours["indices"], step["indices"])
    # One rounding is the least error that a float32 number can have.
    floor = torch.finfo(torch.float32).eps
    for name in set(ours) - {"indices"}:
        recorded = relative_error(step[name], truth[name])
        assert recorded < 1e-5, f"{name}: the recorded step is not this computation"
        assert relative_error(ours[name], truth[name]) <= 4 * (recorded + floor), name


@pytest.mark.parametrize("option", ["legacy", "shared_residual", "relu_skip"])
def test_each_habit_of_the_reference_matters(step, option):
    model = VQVAE.from_reference(CHECKPOINT)
    other = VQVAE(**{**model.config, option: False})
    other.load_state_dict(model.state_dict())
    ours, changed = run_step(model, step), run_step(other, step)
    gradients = [name for name in ours if name.startswith("grad/")]
    assert any(relative_error(changed[n], ours[n].double()) > 1e-3 for n in gradients)


def test_residual_layers_are_one_module():
    model = VQVAE.from_reference(CHECKPOINT)
    for stack in (model.encoder.conv_stack[5].stack, model.decoder.inverse_conv_stack[1].stack):
        assert len(stack) == 2
        assert stack[0] is stack[1]
    stored = torch.load(CHECKPOINT, weights_only=True)["model"]
    assert list(model.state_dict()) == list(stored)


def save_reference(path, state, **hyperparameters):
    """As the reference's training script saves: its loss curves are numpy arrays."""
    curve = [np.array(0.5, dtype=np.float32), np.array(0.25, dtype=np.float32)]
    results = {"n_updates": 1, "recon_errors": curve, "loss_vals": curve, "perplexities": curve}
    torch.save({"model": state, "results": results, "hyperparameters": hyperparameters}, path)


def test_checkpoint_of_a_longer_run_loads(tmp_path):
    source = VQVAE(16, 8, 3, 10, 4, beta=0.5, shared_residual=True, relu_skip=True, legacy=True)
    save_reference(tmp_path / "run.pth", source.state_dict(), beta=0.5, n_hiddens=16)
    loaded = VQVAE.from_reference(str(tmp_path / "run.pth"))
    assert loaded.config == source.config
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_separate_residual_weights_stay_separate(tmp_path):
    source = VQVAE(16, 8, 2, 10, 4, relu_skip=True, legacy=True)
    save_reference(tmp_path / "run.pth", source.state_dict())
    assert VQVAE.from_reference(tmp_path / "run.pth").config["shared_residual"] is False


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_malicious_checkpoint_is_refused(tmp_path):
    target = tmp_path / "executed"
    payload = {"model": Malicious(target)}
    torch.save(payload, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="more than tensors and numbers"):
        VQVAE.from_reference(tmp_path / "bad.pth")
    assert not target.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert target.exists(), "the file would not have done anything"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "state dict under 'model'"),
        ({"state_dict": {}}, "state dict under 'model'"),
        ({"model": {"weight": 3}}, "state dict under 'model'"),
        ({"model": {"weight": torch.zeros(3)}}, "'vector_quantization.embedding.weight'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        VQVAE.from_reference(tmp_path / "other.pth")


def test_incomplete_checkpoint_is_refused(tmp_path):
    state = torch.load(CHECKPOINT, weights_only=True)["model"]
    del state["decoder.inverse_conv_stack.4.bias"]
    save_reference(tmp_path / "incomplete.pth", state)
    with pytest.raises(ValueError, match=r"inverse_conv_stack\.4\.bias"):
        VQVAE.from_reference(tmp_path / "incomplete.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"text", pickle.dumps({"model": 1}, 2)]
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match="not a reference VQ-VAE checkpoint"):
        VQVAE.from_reference(tmp_path / "file.pth")


def test_truncated_checkpoint_is_refused(tmp_path):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        VQVAE.from_reference(tmp_path / "cut.pth")


def test_missing_file():
    with pytest.raises(FileNotFoundError):
        VQVAE.from_reference("no/such/file.pth")
