"""accelerate(compose_projections=True): DAC's residual quantizers, which then round otherwise."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composed_excess import excess
from other_libraries import (
    installed,
    residual_quantizer_of_dac,
    residual_quantizer_of_dac_in_transformers,
)
from same_results import assert_same, leaves, outcome
from torch import Tensor, nn

from vqvae_fast import accelerate, compare, load_quantizer
from vqvae_fast.acceleration import kept
from vqvae_fast.nn.drop_in.composed_stages import ComposedStages, compose

C, Q, K, D, B, T = 40, 4, 300, 6, 3, 50


def _dac(monkeypatch, dims: Any = D) -> nn.Module:
    return residual_quantizer_of_dac(monkeypatch, C, Q, K, dims)


def _dac_in_transformers(_) -> nn.Module:
    return residual_quantizer_of_dac_in_transformers(C, Q, K, D)


LIBRARIES = {"dac": _dac, "transformers": _dac_in_transformers}


@pytest.fixture(params=LIBRARIES)
def module(request, monkeypatch) -> nn.Module:
    module = LIBRARIES[request.param](monkeypatch).eval()
    with torch.no_grad():
        for stage in module.quantizers:
            stage.codebook.weight.normal_()
    return module


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, C, T, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def compositions(monkeypatch) -> list[ComposedStages]:
    """What was composed."""
    made: list[ComposedStages] = []

    def counted(stages: Any) -> ComposedStages:
        made.append(compose(stages))
        return made[-1]

    monkeypatch.setattr(kept, "compose", counted)
    return made


def _composed(module: nn.Module) -> nn.Module:
    ours = _copied(module)
    accelerate(ours, compose_projections=True, quiet=True)
    return ours


def _copied(module: nn.Module) -> nn.Module:
    """A copy; a weight that weight_norm has computed with a gradient could not be copied."""
    with torch.no_grad():
        for stage in module.quantizers:
            for part in (stage.in_proj, stage.out_proj):
                part(torch.zeros(1, part.in_channels, 1))
    return copy.deepcopy(module)


@torch.no_grad()
def _check(ours: nn.Module, x: Tensor, number: int | None = None) -> tuple[Tensor, ...]:
    """Judge the codes in float64, and compare all else with what the model makes of the codes."""
    found = quantized, codes, latents, *losses = ours(x, number)
    exact = load_quantizer(ours).eval()
    exact.layers = exact.layers[: codes.shape[1]]
    rows, indices = x.transpose(1, 2), codes.transpose(1, 2)
    farther, allowed = excess(exact, rows, indices)
    assert (farther <= allowed).all()

    plain = _copied(ours)
    accelerate(plain, quiet=True).undo()
    plain = plain.double()
    total, chosen, _ = plain.from_codes(codes)
    torch.testing.assert_close(quantized.double(), total, rtol=1e-5, atol=1e-5)
    left, seen = x.double(), []
    for stage, code in zip(plain.quantizers, chosen.split(D, dim=1), strict=False):
        seen.append(stage.in_proj(left))
        left = left - stage.out_proj(code)
    wanted = torch.cat(seen, dim=1)
    torch.testing.assert_close(latents.double(), wanted, rtol=1e-5, atol=1e-5)
    loss = (wanted - chosen).square().mean() * codes.shape[1]
    for each in losses:
        torch.testing.assert_close(each.double(), loss.expand(each.shape), rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("number", [None, 1, 3, Q])
@torch.no_grad()
def test_codes_are_the_nearest_and_results_are_the_models(module, x, number, compositions):
    ours = _composed(module)
    for _ in range(2):
        found = _check(ours, x, number)
        assert_same(list(leaves(found)), list(leaves(module(x, number))), tolerance=1e-4)
    assert len(compositions) == 1


@torch.no_grad()
def test_the_judge_allows_no_other_code(module, x):
    exact = load_quantizer(module).eval()
    indices = exact(x.transpose(1, 2))[1]
    for stage in range(Q):
        wrong = indices.clone()
        wrong[..., stage] = (wrong[..., stage] + 1) % K
        farther, allowed = excess(exact, x.transpose(1, 2), wrong)
        assert (farther > allowed)[:, stage].all()


@torch.no_grad()
def test_without_the_callers_word_nothing_is_composed(module, x, compositions):
    accelerate(module, quiet=True)
    module(x)
    assert not compositions


def test_the_report_says_what_composes(module, monkeypatch):
    done = accelerate(module, compose_projections=True, quiet=True)
    name = type(module).__name__
    assert str(done).splitlines() == [
        "vqvae_fast accelerates 1 quantizer",
        f"  (the model itself) ({name}): {Q} stages of K={K}, D={D}, their projections composed, "
        f"with {Q} quantizers in it",
    ]
    stage = module.quantizers[0]
    (place,) = accelerate(stage, compose_projections=True, quiet=True).accelerated
    assert place.about == f"K={K}, D={D}; no projections are composed"
    done.undo()
    stage.codebook.weight = nn.Parameter(torch.randn(K + 1, D))
    done = accelerate(module, compose_projections=True, quiet=True)
    assert len(done.accelerated) == Q
    assert done.left[0].about == (
        "its stages have codebooks of different sizes, so their projections are not composed"
    )


@torch.no_grad()
def test_undo(module, x, compositions):
    expected = list(leaves(module(x)))
    classes = [type(part) for part in module.modules()]
    done = accelerate(module, compose_projections=True, quiet=True)
    module(x)
    assert module in kept._compositions
    accelerate(module, quiet=True)  # it stays composed
    module(x)
    assert len(compositions) == 2
    done.undo()
    assert module not in kept._compositions
    assert classes == [type(part) for part in module.modules()]
    for found, wanted in zip(leaves(module(x)), expected, strict=True):
        assert found == wanted if isinstance(wanted, type) else torch.equal(found, wanted)


@torch.no_grad()
def test_a_class_or_a_name(x, compositions):
    library = installed("transformers.models.dac.modeling_dac")
    cls = library.DacResidualVectorQuantizer
    with pytest.raises(ValueError, match="only with compose_projections=True"):
        accelerate(cls, quiet=True)
    module = _dac_in_transformers(None).eval()
    done = accelerate("transformers.models.dac", compose_projections=True, quiet=True)
    try:
        _check(module, x)
        assert len(compositions) == 1
    finally:
        done.undo()
    module(x)
    assert len(compositions) == 1


def test_training_steps_are_as_before(module, x, compositions):
    ours = _composed(module)
    for _ in range(3):
        assert_same(outcome(ours.train(), x), outcome(module.train(), x))
    with torch.no_grad():
        _check(ours.eval(), x)


def _weights_in(module: nn.Module) -> None:
    next(module.quantizers[1].in_proj.parameters()).mul_(1.5)


def _last_of_in(module: nn.Module) -> None:
    list(module.quantizers[1].in_proj.parameters())[-1].add_(0.5)


def _bias_in(module: nn.Module) -> None:
    module.quantizers[3].in_proj.bias.add_(1)


def _weights_out(module: nn.Module) -> None:
    next(module.quantizers[0].out_proj.parameters())[2] -= 1


def _bias_out(module: nn.Module) -> None:
    module.quantizers[2].out_proj.bias.fill_(2)


def _codes(module: nn.Module) -> None:
    module.quantizers[2].codebook.weight.copy_(torch.randn(K, D))


def _other_tensor(module: nn.Module) -> None:
    module.quantizers[0].codebook.weight = nn.Parameter(torch.randn(K, D))


def _other_storage(module: nn.Module) -> None:
    module.quantizers[0].codebook.weight.data = torch.randn(K, D)


def _loaded(module: nn.Module) -> None:
    state = {name: 1.5 * tensor + 0.1 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state)


def _assigned(module: nn.Module) -> None:
    state = {name: 1.5 * tensor + 0.1 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def _moved(module: nn.Module) -> None:
    module.bfloat16().float()


def _stage_with_another(module: nn.Module) -> None:
    module.quantizers[0], module.quantizers[1] = module.quantizers[1], module.quantizers[0]


def _trained(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    x = torch.randn(2, C, 9)
    with torch.enable_grad():
        quantized, _, _, commitment, codebook = module.train()(x)
        (quantized.square().mean() + commitment.mean() + codebook.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    module.eval()


def _trained_through_data(module: nn.Module) -> None:
    """A training step that writes in a way that torch does not count."""
    module.train()(torch.randn(2, C, 9))
    for parameter in module.parameters():
        parameter.data.mul_(1.5)
    module.eval()


def _one_stage_trained_through_data(module: nn.Module) -> None:
    stage = module.quantizers[0]
    stage.train()(torch.randn(2, C, 9))
    for parameter in stage.parameters():
        parameter.data.mul_(1.5)
    module.eval()


CHANGES = [_weights_in, _last_of_in, _bias_in, _weights_out, _bias_out, _codes, _other_tensor]
CHANGES += [_other_storage, _loaded, _assigned, _moved, _stage_with_another, _trained]
CHANGES += [_trained_through_data, _one_stage_trained_through_data]


@pytest.mark.parametrize("change", CHANGES)
def test_it_composes_anew_after_a_change(module, x, change: Callable, compositions):
    ours = _composed(module)
    before = _check(ours, x)
    with torch.no_grad():
        change(ours)
    after = _check(ours, x)
    _check(ours, x)
    assert len(compositions) == 2
    assert not torch.equal(before[0], after[0])


def _hook(module: nn.Module) -> None:
    module.quantizers[1].register_forward_hook(lambda *given: None)


def _hook_of_projection(module: nn.Module) -> None:
    module.quantizers[1].out_proj.register_forward_pre_hook(lambda *given: None)


def _hook_of_codebook(module: nn.Module) -> None:
    module.quantizers[1].codebook.register_forward_hook(lambda *given: None)


def _hf_hook(module: nn.Module) -> None:
    module.quantizers[1].codebook._hf_hook = _NoHook()


def _own_search(module: nn.Module) -> None:
    stage = module.quantizers[1]
    stage.decode_latents = lambda latents: type(stage).decode_latents(stage, latents)


def _own_forward(module: nn.Module) -> None:
    stage = module.quantizers[1]
    stage.forward = lambda *given: type(stage).forward(stage, *given)


def _subclass(module: nn.Module) -> None:
    kind = type(module.quantizers[1])
    module.quantizers[1].__class__ = type("Mine", (kind,), {"forward": kind.forward})


def _long_rows(module: nn.Module) -> None:
    module.quantizers[1].codebook.max_norm = 1e9


def _sized(module: nn.Module) -> None:
    codes = module.quantizers[1].codebook.weight
    module.quantizers[1].codebook = nn.Embedding.from_pretrained(torch.cat([codes, codes[:1] + 1]))


class _NoHook:
    def pre_forward(self, module: nn.Module, *given: Any) -> None: ...

    def post_forward(self, module: nn.Module, output: Any) -> None: ...


OTHERS = [_hook, _hook_of_projection, _hook_of_codebook, _hf_hook, _own_search, _own_forward]
OTHERS += [_subclass, _long_rows, _sized]


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("before", [False, True])
@torch.no_grad()
def test_stages_that_do_more_are_called(module, x, change, before, compositions):
    plain, ours = _copied(module), _copied(module)
    change(plain)
    if before:
        change(ours)
    accelerate(ours, compose_projections=True, quiet=True)
    if not before:
        change(ours)
    assert_same(list(leaves(ours(x))), list(leaves(plain(x))))
    assert not compositions


def test_new_weight_norm_is_left_to_the_model(x, compositions):
    module = _dac_in_transformers(None).eval()
    nn.utils.parametrizations.weight_norm(module.quantizers[0].in_proj)
    ours = _composed(module)
    with torch.no_grad():
        assert_same(list(leaves(ours(x))), list(leaves(module(x))))
    assert not compositions


@torch.no_grad()
def test_calls_that_are_as_before(module, x, compositions):
    ours = _composed(module)
    with torch.enable_grad():
        assert_same(outcome(ours, x), outcome(module, x))
    plain = _copied(module)
    accelerate(plain, quiet=True)
    with torch.autocast("cpu"):
        assert_same(list(leaves(ours(x))), list(leaves(plain(x))), tolerance=0)
    for given in (x[:, :-1], x.double()):
        _fails_or_gives_the_same(ours, module, given)
    for number in (0, -1, Q + 3, 2.0):
        _fails_or_gives_the_same(ours, module, x, number)
    _fails_or_gives_the_same(ours.double(), module.double(), x.double())
    assert not compositions


def _fails_or_gives_the_same(ours: nn.Module, module: nn.Module, *given: Any) -> None:
    try:
        expected = list(leaves(module(*given)))
    except (RuntimeError, ValueError) as problem:
        with pytest.raises(type(problem)):
            ours(*given)
    else:
        assert_same(list(leaves(ours(*given))), expected)


@torch.no_grad()
def test_vectors_with_nan_or_infinities(module, x, compositions):
    x[1, 3, 7] = torch.nan
    x[0, 2, 1] = torch.inf
    found, expected = _composed(module)(x), module(x)
    assert_same(list(leaves(found)), list(leaves(expected)), tolerance=1e-4)
    assert len(compositions) == 1


@torch.no_grad()
def test_codes_of_zeros(module, x):
    """They have no direction, and are near where no other code is."""
    for stage in module.quantizers:
        stage.codebook.weight[:] = -stage.in_proj(x)[0, :, :1].t()
        stage.codebook.weight[5] = 0
    ours, x = _composed(module), x[:1, :, :1]
    plain = _copied(module)
    accelerate(plain, quiet=True)
    assert torch.equal(ours(x)[1][0, 0], plain(x)[1][0, 0])
    assert ours(x)[1][0, 0] == 5


@torch.no_grad()
def test_the_comparison_runs_the_models_own_searches(module, x, compositions):
    expected = compare(module, x)
    assert compare(_composed(module), x) == expected
    assert len(expected) == Q
    assert not compositions


@torch.no_grad()
def test_copies_and_pickles(module, x, compositions):
    ours = _composed(module)
    before = ours(x)
    copied = copy.deepcopy(ours)
    copied.quantizers[0].in_proj.bias.add_(1)
    assert not torch.equal(copied(x)[0], before[0])
    assert torch.equal(ours(x)[0], before[0])
    assert len(compositions) == 2
    assert type(pickle.loads(pickle.dumps(ours))) is type(module)


@torch.no_grad()
def test_inference_mode(module, x, compositions):
    ours = _composed(module)
    with torch.inference_mode():
        inside = ours(x)
    assert not compositions[0].entry.is_inference()
    assert torch.equal(inside[1], _check(ours, x)[1])


@torch.no_grad()
def test_it_compiles_in_one_graph_as_it_was(x, compositions):
    module = _dac_in_transformers(None).eval()
    ours, plain = _composed(module), _copied(module)
    accelerate(plain, quiet=True)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert_same(list(leaves(compiled(x))), list(leaves(plain(x))), tolerance=0)
    assert not compositions
