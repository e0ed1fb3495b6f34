"""In eval stages with projections run without a call of each, and give what their calls give."""

import pytest
import torch
from torch import Tensor, nn

from vqvae_fast import ResidualVQ
from vqvae_fast.nn.drop_in import residual_vq_routes

D, K = 12, 40


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the route has served each call."""
    served: list[bool] = []
    run = residual_vq_routes.Projected.run

    def watched(*arguments: object) -> object:
        outcome = run(*arguments)
        served.append(outcome is not None)
        return outcome

    monkeypatch.setattr(residual_vq_routes.Projected, "run", watched)
    return served


def quantizer(**options: object) -> ResidualVQ:
    arguments = {"dim": D, "num_quantizers": 3, "codebook_size": K, "codebook_dim": 4}
    return ResidualVQ(**arguments | {"project_per_stage": True} | options).eval()


def by_calls(module: ResidualVQ, x: Tensor, **arguments: object) -> tuple:
    """The result stage by stage, because a hook watches one."""
    handle = module.layers[1].register_forward_hook(lambda *arguments: None)
    result = module(x, **arguments)
    handle.remove()
    return result


@pytest.mark.parametrize("shape", [(2, 7, D), (1, 1, D), (5, D), (0, 3, D)])
@pytest.mark.parametrize("cosine_search", [False, True])
@torch.no_grad()
def test_it_gives_what_the_calls_give(shape: tuple, cosine_search: bool, runs: list) -> None:
    module, x = quantizer(cosine_search=cosine_search), torch.randn(shape)
    found, wanted = module(x, return_all_codes=True), by_calls(module, x, return_all_codes=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert runs == [True, False]


@torch.no_grad()
def test_stages_of_several_sizes(runs: list) -> None:
    module = quantizer(codebook_size=(K, 7), num_quantizers=None)
    x = torch.randn(2, 7, D)
    torch.testing.assert_close(module(x), by_calls(module, x), rtol=0, atol=0)
    assert runs == [True, False]


@torch.no_grad()
def test_channels_first(runs: list) -> None:
    """The vectors are copied side by side; a product in another layout rounds differently."""
    module, x = quantizer(channel_last=False), torch.randn(2, D, 9)
    before = x.clone()
    found, wanted = module(x), by_calls(module, x)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(x, before)
    assert runs == [True, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.layers[2].project_in.register_forward_hook(lambda *given: None),
        lambda module: module.layers[0].project_out.register_forward_pre_hook(lambda *given: None),
        lambda module: nn.utils.parametrizations.weight_norm(module.layers[1].project_in),
        lambda module: setattr(module.layers[1], "project_out", nn.Sequential(nn.Linear(4, D))),
        lambda module: module.double(),
        lambda module: module.layers[1].register_forward_hook(lambda *given: None),
    ],
)
@torch.no_grad()
def test_what_it_leaves_to_the_calls(change: object, runs: list) -> None:
    module = quantizer()
    change(module)
    module(torch.randn(2, 7, D).to(module.layers[0].zero.dtype))
    assert runs == [False]


def test_calls_that_it_leaves(runs: list) -> None:
    x = torch.randn(2, 7, D)
    module = quantizer()
    assert module(x)[0].requires_grad  # by the projections
    with torch.no_grad():
        module(x, mask=torch.ones(2, 7, dtype=torch.bool))
        with torch.autocast("cpu"):
            module(x)
        quantizer(use_cosine_sim=True)(x)
        quantizer(affine_param=True)(x)
        quantizer().train()(x)
    assert runs == [False] * 6
    with torch.no_grad():
        quantizer(codebook_dim=D)(x)  # no projections at all
    assert runs == [False] * 6


@torch.no_grad()
def test_the_caller_may_write_to_the_results() -> None:
    module, x = quantizer().freeze(), torch.randn(2, 7, D)
    wanted = module(x)
    for part in module(x):
        part.zero_()
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
