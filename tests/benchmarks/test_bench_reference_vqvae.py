"""The rebuilt reference is the reference: its recorded step comes out, gradients included."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.reference_training import train_reference
from benchmarks.reference_vqvae import ReferenceVQVAE, reference_optimizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "reference_step.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_recorded_step(golden):
    checkpoint = torch.load(GOLDEN / "reference_checkpoint.pth", weights_only=True)
    model = ReferenceVQVAE(width=32, inner=16, layers=2, num_codes=64, dim=16, beta=0.25)
    model.load_state_dict(checkpoint["model"])
    x = golden["x"].clone().requires_grad_()
    output = model(x)
    recon = F.mse_loss(output.x_hat, golden["x"]) / golden["x_var"].float()
    loss = recon + output.embedding_loss
    loss.backward()

    assert torch.equal(output.indices, golden["indices"][:, 0])
    for name, got in (
        ("x_hat", output.x_hat),
        ("embedding_loss", output.embedding_loss),
        ("recon_loss", recon),
        ("loss", loss),
    ):
        torch.testing.assert_close(got.detach(), golden[name].to(got.dtype), msg=name)
    gradients = dict(model.named_parameters())
    compared = {name for name in golden if name.removeprefix("grad/") in gradients}
    assert len(compared) == len(gradients)
    for name in compared:
        gradient = gradients[name.removeprefix("grad/")].grad
        torch.testing.assert_close(gradient, golden[name], rtol=1e-4, atol=1e-7, msg=name)


def test_recipe_is_the_references():
    model = ReferenceVQVAE()
    optimizer = reference_optimizer(model)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["amsgrad"]
    assert optimizer.defaults["lr"] == 3e-4
    codes = model.vector_quantization.embedding.weight.detach()
    assert codes.shape == (512, 64)
    assert 0.9 / 512 < float(codes.abs().max()) <= 1 / 512


def test_training_is_seeded_and_learns():
    crops = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def losses(steps, seed):
        trained = train_reference(lambda step: crops, 0.1, steps, seed)
        assert trained.seconds > 0
        with torch.no_grad():
            return float(F.mse_loss(trained.model(crops).x_hat, crops))

    before, after = losses(0, 3), losses(20, 3)
    assert after < 0.9 * before
    assert losses(20, 3) == after
    assert losses(20, 4) != after
