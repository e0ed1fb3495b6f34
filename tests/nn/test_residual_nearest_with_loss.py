"""The residual stages in one piece: what stage by stage gives, and less that is kept."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from vqvae_fast.nn import GroupedResidualVQ, ResidualVQ
from vqvae_fast.nn.drop_in.residual_vq_routes import PlainStages

LEARNING = [
    {},
    {"learnable_codebook": True, "ema_update": False},
    {"threshold_ema_dead_code": 1},
    {"learnable_codebook": True, "ema_update": False, "threshold_ema_dead_code": 1},
    {"kmeans_init": True, "kmeans_iters": 2},
    {"freeze_codebook": True},
    {"learnable_codebook": True, "ema_update": False, "freeze_codebook": True},
    {"affine_param": True},
    {"decay": 0.5, "commitment_weight": 0.3},
]


def trained(learning, stage_by_stage, monkeypatch, *, n=60, k=24, d=9, dtype=torch.float32, **more):
    """Outputs and gradients of three steps, and the state after them."""
    with monkeypatch.context() as patch:
        taken = []
        in_one_piece = PlainStages.run

        def watched(*arguments):
            outcome = None if stage_by_stage else in_one_piece(*arguments)
            taken.append(outcome is not None)
            return outcome

        patch.setattr(PlainStages, "run", watched)
        torch.manual_seed(0)
        quantizer = ResidualVQ(dim=d, codebook_size=k, num_quantizers=4, **learning, **more)
        quantizer.to(dtype).train()
        records = []
        for _ in range(3):
            x = torch.randn(2, n // 2, d, dtype=dtype).requires_grad_()
            quantized, indices, losses = quantizer(x)
            weights = torch.randn(quantized.shape, dtype=dtype)
            ((quantized * weights).sum() + (losses * torch.arange(1, 5)).sum()).backward()
            records += [quantized.detach(), indices, losses.detach(), x.grad]
            records += [p.grad.clone() for p in quantizer.parameters() if p.grad is not None]
            quantizer.zero_grad()
    assert taken == [not stage_by_stage] * 3
    return [*records, *quantizer.state_dict().values()]


@pytest.mark.parametrize("learning", LEARNING, ids=str)
@pytest.mark.parametrize("rotation_trick", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"n": 20}, {"dtype": torch.float64}, {"d": 16, "k": (24, 7, 24, 30)}],
    ids=str,
)
def test_it_is_stage_by_stage(learning, rotation_trick, sizes, monkeypatch):
    how = sizes | {"rotation_trick": rotation_trick}
    at_once, by_stages = (trained(learning, each, monkeypatch, **how) for each in (False, True))
    assert len(at_once) == len(by_stages)
    for ours, wanted in zip(at_once, by_stages, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2e-5, atol=2e-6)


def saved_elements(forward):
    """Floats that autograd keeps for the backward pass, each memory counted once."""
    storages = {}

    def pack(tensor):
        if tensor.is_floating_point():
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())


@pytest.mark.parametrize("learning", LEARNING[:2], ids=str)
def test_the_stages_vectors_are_not_kept(learning):
    quantizer = ResidualVQ(dim=16, codebook_size=32, num_quantizers=8, **learning)
    x = torch.randn(1, 4096, 16).requires_grad_()
    assert saved_elements(lambda: quantizer(x)) <= x.numel() + 8 * 32 * 16 + 100


def test_many_codes_are_not_kept_either():
    quantizer = ResidualVQ(dim=16, codebook_size=4096, num_quantizers=2)
    x = torch.randn(1, 32, 16).requires_grad_()
    assert saved_elements(lambda: quantizer(x)) <= 3 * x.numel() + 100


def test_a_later_step_does_not_change_an_earlier_gradient():
    """The averages are written in place; the backward pass wants the codes as they were."""
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        quantizer = ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, decay=0.1)
        x = torch.randn(1, 40, 8).requires_grad_()
        quantized, _, losses = quantizer(x)
        if again:
            quantizer(torch.randn(1, 40, 8))
            quantized.data.zero_()
        (quantized.sum() + losses.sum()).backward(retain_graph=again)
        gradients.append(x.grad.clone())
        if again:
            x.grad = None
            (quantized.sum() + losses.sum()).backward()
            assert torch.equal(x.grad, gradients[-1])
    assert torch.equal(*gradients)


def test_groups_take_it_too(monkeypatch):
    outcomes = []
    in_one_piece = PlainStages.run
    monkeypatch.setattr(
        PlainStages, "run", lambda *a: outcomes.append(in_one_piece(*a)) or outcomes[-1]
    )
    quantizer = GroupedResidualVQ(dim=16, codebook_size=8, num_quantizers=2, groups=2)
    quantizer(torch.randn(1, 10, 16).requires_grad_())
    assert len(outcomes) == 2
    assert None not in outcomes


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("everywhere", [True, False], ids=["all modules", "one stage"])
def test_hooks_of_a_stage_are_called(everywhere, training):
    quantizer = ResidualVQ(dim=8, codebook_size=8, num_quantizers=3).train(training)
    stages = list(quantizer.layers) if everywhere else [quantizer.layers[1]]
    seen = []

    def see(module, *_):
        if module in stages:
            seen.append(module)

    register = register_module_forward_hook if everywhere else stages[0].register_forward_hook
    hook = register(see)
    x = torch.randn(1, 10, 8).requires_grad_(training)
    try:
        watched = quantizer(x)
    finally:
        hook.remove()
    assert seen == stages
    if not training:
        torch.testing.assert_close(quantizer(x), watched)
    else:
        quantizer(x)
    assert seen == stages


@pytest.mark.parametrize("learning", [*LEARNING[:4], *LEARNING[5:7]], ids=str)
def test_whatever_is_returned_may_be_written_to(learning):
    """Before the backward pass; and other steps may come between, learning or not."""
    gradients = []
    for writes in (False, True):
        torch.manual_seed(0)
        quantizer = ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, **learning)
        x = torch.randn(2, 20, 8).requires_grad_()
        quantized, indices, losses = quantizer(x)
        doubled = quantized.mul_(2) if writes else quantized * 2
        if writes:
            indices += 100
            if not quantizer.layers[0].learnable_codebook:
                quantizer(torch.randn(2, 20, 8), freeze_codebook=False)
        (doubled.sum() + losses.sum()).backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("learning", LEARNING[:4], ids=str)
def test_without_a_gradient_the_codes_are_those_of_the_search(learning):
    torch.manual_seed(0)
    quantizer = ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, **learning)
    x = torch.randn(1, 20, 8).requires_grad_()
    books = quantizer.codebooks.detach().clone()
    with torch.no_grad():
        quantized, indices, _ = quantizer(x)
    wanted = sum(book[indices[0, :, stage]] for stage, book in enumerate(books))
    torch.testing.assert_close(quantized[0], wanted)


@pytest.mark.parametrize("setting", [("commitment_weight", 0.1), ("rotation_trick", False)])
def test_a_stage_may_differ_from_the_others(setting):
    results = []
    for changed in (False, True):
        torch.manual_seed(0)
        quantizer = ResidualVQ(dim=8, codebook_size=16, num_quantizers=3)
        if changed:
            setattr(quantizer.layers[1], *setting)
        x = torch.randn(1, 20, 8).requires_grad_()
        quantized, _, losses = quantizer(x)
        (quantized.square().sum() + losses.sum()).backward()
        results.append(torch.cat([losses.detach(), x.grad.flatten()]))
    assert not torch.allclose(*results)
