"""What torch does to any module: DistributedDataParallel, meta device, copies, averages, export."""

import copy
import io
import pickle

import pytest
import torch
from every_quantizer import QUANTIZERS, tensors
from process_group import run_together
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    return QUANTIZERS[request.param]


def same_results(one, other, x):
    results = []
    for module in (one, other):
        torch.manual_seed(0)
        results.append(tensors(module(x)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def same_state(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


class Model(nn.Module):
    """DistributedDataParallel wants a parameter."""

    def __init__(self, quantizer):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.quantizer = quantizer

    def forward(self, x):
        return (
            sum(part.float().mean() for part in tensors(self.quantizer(x * self.scale)))
            + self.scale.square()
        )


def step_under_ddp(rank, folder):
    failures = {}
    for name, (make, shape) in QUANTIZERS.items():
        torch.manual_seed(0)
        try:
            model = DistributedDataParallel(Model(make()), find_unused_parameters=True)
            for _ in range(2):
                model(torch.randn(shape)).backward()
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    torch.save(failures, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_a_step_under_distributed_data_parallel(tmp_path):
    run_together(step_under_ddp, 2, tmp_path)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [{}, {}]


def test_made_on_the_meta_device_and_loaded(quantizer):
    """As large models are: no value but those of the state dict may matter."""
    module = quantizer.make()
    module(torch.randn(quantizer.shape))
    with torch.device("meta"):
        loaded = quantizer.make()
    loaded.to_empty(device="cpu")
    for tensor in (*loaded.parameters(), *loaded.buffers()):  # whatever the memory held
        tensor.detach().fill_(True if tensor.dtype == torch.bool else 77)
    loaded.load_state_dict(module.state_dict())
    x = torch.randn(quantizer.shape)
    same_results(module, loaded, x)
    same_state(module, loaded)
    same_results(module.eval(), loaded.eval(), x)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["", "pickle"]
)
def test_copies_go_their_own_way(quantizer, copied):
    module = quantizer.make()
    other = copied(module)
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(quantizer.shape)
    other(x)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    same = quantizer.make()
    same.load_state_dict(before)
    same_results(module, same, x)


def test_an_average_of_the_model_follows_it(quantizer):
    module = quantizer.make()
    averaged = AveragedModel(module, avg_fn=lambda old, new, number: new, use_buffers=True)
    by_hand = copy.deepcopy(module)
    for _ in range(6):
        module(torch.randn(quantizer.shape))
        averaged.update_parameters(module)
        copies = by_hand.state_dict()
        for name, value in module.state_dict().items():
            copies[name].copy_(value)
        same_state(module, averaged.module)
        same_state(module, by_hand)


@pytest.mark.quick(4)
def test_an_exported_program_can_be_saved(quantizer):
    module = quantizer.make()
    x = torch.randn(quantizer.shape)
    module.train()(x)
    module.eval()
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(tensors(loaded(x)), tensors(module(x)))
