"""What a step of VectorQuantize takes: no wait, little memory; and compiled it is the same step."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantizers import MASK, TRAINING, inputs_of, quantizer

import vqvae_fast
from vqvae_fast.nn.codebook import host_flag


class Watch(TorchDispatchMode):
    """Sees every operation: the largest result, and whatever waits for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.largest, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        name = str(func)
        by_mask = "index.Tensor" in name and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(word in name for word in self.WAITS):
            self.waits.append(name)
        return out


@pytest.mark.quick(4)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", TRAINING, ids=str)
def test_compiled_steps_are_the_eager_ones(options, masked):
    torch.compiler.reset()
    eager = quantizer(**options)
    other = quantizer(**options)
    other.load_state_dict(eager.state_dict())
    fmap = "accept_image_fmap" in options
    call = {"mask": MASK.view(2, 3, 4) if fmap else MASK} if masked else {}
    compiled = torch.compile(lambda x: other(x, **call), fullgraph=True, backend="aot_eager")
    for training in (True, True, True, False):
        eager.train(training)
        other.train(training)
        x = inputs_of(options)
        results = []
        for function in (lambda x: eager(x, **call), compiled):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(1)
            out = function(leaf)
            if training:
                (out[0].square().sum() + out[2]).backward()
            results.append((*out, leaf.grad))
        torch.testing.assert_close(*results)
        for key, value in eager.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value)


@pytest.mark.quick(1)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_of_the_default_compiler(dynamic):
    """k-means and expiry, too: aot_eager does not see what inductor fails at."""
    torch.compiler.reset()
    options = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    module = quantizer(**options)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for _ in range(2):
        x = torch.randn(2, 12, 8, requires_grad=True)
        quantized, _, loss = compiled(x)
        (quantized.sum() + loss).backward()
        assert x.grad.isfinite().all()
    assert module._codebook.initted
    module.eval()
    compiled_result, result = compiled(x), module(x)
    assert torch.equal(compiled_result[1], result[1])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", TRAINING, ids=str)
def test_no_step_waits_for_the_device(options, masked, monkeypatch):
    monkeypatch.setattr(host_flag, "_READ_AT_ONCE", ())  # as of tensors on a device
    module = quantizer(**options)
    fmap = "accept_image_fmap" in options
    call = {"mask": MASK.view(2, 3, 4) if fmap else MASK} if masked else {}
    module(inputs_of(options), **call)
    for training in (True, False):
        module.train(training)
        x = inputs_of(options).requires_grad_()
        with Watch() as watch:
            out = module(x, **call)
            if training:
                (out[0].sum() + out[2]).backward()
        assert watch.waits == []


@pytest.mark.parametrize("options", TRAINING, ids=str)
def test_n_x_k_numbers_are_never_in_memory(options, monkeypatch):
    """Beside K x d and N x d; what needs all distances takes them in chunks."""
    monkeypatch.setattr(vqvae_fast.nn.steps.logits, "_CHUNK_ELEMENTS", 1 << 12)
    shape = (1, 8, 32, 32) if "accept_image_fmap" in options else (1, 1024, 8)
    module = quantizer(**options, codebook_size=512)
    x = torch.randn(shape, requires_grad=True)
    module(x)
    with Watch() as watch:
        quantized, _, loss = module(x)
        (quantized.sum() + loss).backward()
    assert watch.largest < 1024 * 512 / 8


@pytest.mark.parametrize(
    "options",
    [
        {"threshold_ema_dead_code": 2, "kmeans_init": True, "stochastic_sample_codes": True},
        {"directional_reparam": True, "threshold_ema_dead_code": 1},
    ],
    ids=str,
)
def test_the_seed_repeats_every_bit(options):
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        module = quantizer(**options)
        for _ in range(3):
            module(torch.randn(2, 12, 8).requires_grad_())
        results.append(module.state_dict())
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key])
