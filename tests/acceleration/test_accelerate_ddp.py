"""accelerate() under DistributedDataParallel: two processes train what they trained before."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from classes_by_shape import Quantize, Second, SimVQ
from process_group import run_together
from same_results import assert_same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from vqp_pairs import make

from vqvae_fast import accelerate

WORLD, STEPS, B, T, D, K = 2, 4, 3, 10, 8, 24


class OfTokens(nn.Module):
    """Gives a quantizer of images [B, D, height, width] tokens [B, T, D]."""

    def __init__(self, quantizer: nn.Module):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = self.quantizer(z.transpose(1, 2)[..., None])
        if isinstance(self.quantizer, SimVQ):
            (quantized, _, indices), terms = result
            loss = terms.commitment
        else:
            quantized, loss, (_, _, indices) = result
        return quantized[..., 0].transpose(1, 2), indices, loss


class LossBefore(nn.Module):
    """Puts the loss of a quantizer behind its indices."""

    def __init__(self, quantizer: nn.Module):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, loss, indices = self.quantizer(z)
        return quantized, indices, loss


class Autoencoder(nn.Module):
    """A quantizer between two linear layers."""

    def __init__(self, quantizer: nn.Module):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = nn.Linear(D, D), quantizer, nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantizer(self.encoder(x))
        return self.decoder(quantized), indices, loss.sum()


QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "averages, taken by each process": lambda: LossBefore(Quantize(D, K)),
    "averages of all processes": lambda: make("VectorQuantize", sync_codebook=True),
    "averages, expiry": lambda: make("VectorQuantize", threshold_ema_dead_code=2),
    "averages in stages": lambda: make("ResidualVQ"),
    "gradients": lambda: OfTokens(Second(K, D, 0.4)),
    "gradients of a projection": lambda: OfTokens(SimVQ(K, D)),
    "gradients, vector-quantize-pytorch": lambda: make(
        "VectorQuantize", learnable_codebook=True, ema_update=False
    ),
}
WAYS = ("own", "accelerated, then wrapped", "wrapped, then accelerated")


def _wrapped(make_quantizer: Callable[[], nn.Module], way: str) -> nn.Module:
    torch.manual_seed(0)
    model = Autoencoder(make_quantizer())
    if way == WAYS[1]:
        assert accelerate(model, quiet=True).accelerated
    wrapped = DistributedDataParallel(model)
    if way == WAYS[2]:
        assert accelerate(wrapped, quiet=True).accelerated
    return wrapped


def _learn(model: nn.Module, x: Tensor) -> list[Any]:
    """Training steps, each with a look at the codes in eval: what they give, and the state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Any] = []
    for step, batch in enumerate(x):
        torch.manual_seed(step)
        optimizer.zero_grad()
        decoded, indices, loss = model.train()(batch)
        (nn.functional.mse_loss(decoded, batch) + loss).backward()
        seen += [decoded.detach(), indices, loss.detach()]
        seen += [
            parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad
        ]
        optimizer.step()
        with torch.no_grad():
            seen += model.eval()(batch)
    return [*seen, *copy.deepcopy(model.state_dict()).values(), list(model.state_dict())]


def _work(rank: int, folder: str) -> None:
    x = torch.randn(STEPS, WORLD, B, T, D, generator=torch.Generator().manual_seed(3))[:, rank]
    learned = {
        (name, way): _learn(_wrapped(made, way), x)
        for name, made in QUANTIZERS.items()
        for way in WAYS
    }
    torch.save(learned, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_together(_work, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("way", WAYS[1:])
def test_processes_train_what_they_trained_before(learned, name, way):
    for of_process in learned:
        assert_same(of_process[name, way], of_process[name, "own"], tolerance=1e-4)


@pytest.mark.parametrize("name", ["gradients", "averages of all processes"])
def test_all_processes_have_one_model(learned, name):
    for way in WAYS:
        keys = learned[0][name, way][-1]
        mine, theirs = (of_process[name, way][-len(keys) - 1 :] for of_process in learned)
        assert_same(mine, theirs, tolerance=0)
