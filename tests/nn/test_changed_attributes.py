"""Attributes that are set on a quantizer after it was made: each takes effect, or is refused."""

import copy
import pickle

import pytest
import torch

from vqvae_fast.nn import ResidualSimVQ, ResidualVQ, SimVQ, VectorQuantize

RESIDUAL = {"dim": 8, "codebook_size": 16, "num_quantizers": 4}
ONE = {"dim": 8, "codebook_size": 16}
MADE = {VectorQuantize: ONE, ResidualVQ: RESIDUAL, SimVQ: ONE, ResidualSimVQ: RESIDUAL}
FIXED = [(kind, name) for kind in MADE for name in sorted(kind.FIXED)]


@pytest.mark.parametrize(("kind", "name"), FIXED)
def test_what_only_has_an_effect_at_the_start_is_fixed(kind, name):
    module = kind(**MADE[kind])
    old = getattr(module, name)
    setattr(module, name, old)  # nothing changes
    new = (not old) if isinstance(old, bool) else 3
    with pytest.raises(AttributeError, match=rf"^{name} of a \w+ is fixed when it is made: it is "):
        setattr(module, name, new)
    assert getattr(module, name) == old


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_made_although_attributes_are_fixed(kind, copied):
    module = kind(**MADE[kind])
    other = copied(module)
    assert vars(other).keys() == vars(module).keys()
    x = torch.randn(2, 12, 8)
    assert torch.equal(other.eval()(x)[1], module.eval()(x)[1])


@pytest.mark.parametrize("kind", [ResidualVQ, ResidualSimVQ])
def test_quantize_dropout_is_switched_on_and_off(kind):
    module = kind(**RESIDUAL)
    x = torch.randn(2, 12, 8)
    module.quantize_dropout = True
    module.quantize_dropout_cutoff_index = 1
    module.quantize_dropout_multiple_of = 2
    always = kind(
        **RESIDUAL,
        quantize_dropout=True,
        quantize_dropout_cutoff_index=1,
        quantize_dropout_multiple_of=2,
    )
    stages = set()
    for seed in range(20):
        left_out = [
            (each(x, rand_quantize_dropout_fixed_seed=seed)[1] == -1).all(dim=(0, 1)).tolist()
            for each in (module, always)
        ]
        assert left_out[0] == left_out[1]
        stages.add(left_out[0].count(False))
    assert stages == {2, 4}
    module.quantize_dropout = False
    assert not any((module(x)[1] == -1).any() for _ in range(20))


@pytest.mark.parametrize("kind", [ResidualVQ, ResidualSimVQ])
def test_quantize_dropout_out_of_range_is_refused(kind):
    module = kind(**RESIDUAL)
    with pytest.raises(ValueError, match=r"cutoff_index must be in \[0, num_quantizers=4\), got 4"):
        module.quantize_dropout_cutoff_index = 4
    with pytest.raises(ValueError, match="multiple_of must be at least 1, got 0"):
        module.quantize_dropout_multiple_of = 0
    assert module.quantize_dropout_cutoff_index == 0
    assert module.quantize_dropout_multiple_of == 1


def test_a_compiled_quantizer_follows_quantize_dropout():
    torch.compiler.reset()
    module = ResidualVQ(**RESIDUAL)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, 8)
    assert not (compiled(x)[1] == -1).any()
    module.quantize_dropout = True
    assert any((compiled(x)[1] == -1).any() for _ in range(20))


def changed(name, value):
    """A module whose attribute was changed, and one that was made so, with the same codes."""
    module, made = ResidualVQ(**RESIDUAL), ResidualVQ(**RESIDUAL | {name: value})
    made.load_state_dict(module.state_dict())
    setattr(module, name, value)
    return module, made


@pytest.mark.parametrize(("name", "value"), [("beam_size", 3), ("quant_grad_frac", 0.5)])
def test_the_number_of_beams_and_the_share_of_the_gradient(name, value):
    results = []
    for module in changed(name, value):
        x = torch.linspace(-1, 1, 192).view(2, 12, 8).requires_grad_()
        out = module(x)
        (out[0].square().sum() + out[2].sum()).backward()
        results.append((*out, x.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("name", "value", "of_codebook"),
    [
        ("threshold_ema_dead_code", 50, True),
        ("threshold_ema_dead_code", 50, False),
        ("decay", 0.0, True),
        ("decay", 0.0, False),
        ("eps", 0.5, False),
        ("ema_update", False, True),
    ],
)
def test_how_the_codes_of_a_stage_learn(name, value, of_codebook):
    module, made = ResidualVQ(**RESIDUAL), ResidualVQ(**RESIDUAL, **{name: value})
    made.load_state_dict(module.state_dict())
    for stage in module.layers:
        setattr(stage._codebook if of_codebook else stage, name, value)
        assert getattr(stage, name) == value
    x = torch.randn(2, 12, 8, requires_grad=True)
    for each in (module, made):
        torch.manual_seed(1)
        each(x)
    for key, wanted in made.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], wanted)


def test_the_cluster_size_of_a_code_that_moves():
    module = VectorQuantize(dim=8, codebook_size=16, threshold_ema_dead_code=50)
    assert module._codebook.reset_cluster_size == 50
    module._codebook.reset_cluster_size = 7
    module(torch.randn(2, 12, 8))
    assert (module._codebook.cluster_size == 7).all()


@pytest.mark.parametrize("name", ["freeze_codebook", "commitment_weight", "rotation_trick"])
def test_what_a_stage_is_told(name):
    value = {"freeze_codebook": True, "commitment_weight": 0.25, "rotation_trick": False}[name]
    module, made = ResidualVQ(**RESIDUAL), ResidualVQ(**RESIDUAL, **{name: value})
    made.load_state_dict(module.state_dict())
    for stage in module.layers:
        setattr(stage, name, value)
    results = []
    for each in (module, made):
        x = torch.linspace(-1, 1, 192).view(2, 12, 8).requires_grad_()
        out = each(x)
        (out[0].square().sum() + out[2].sum()).backward()
        results.append((*out, x.grad))
    torch.testing.assert_close(*results)
    for key, wanted in made.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], wanted)


@pytest.mark.parametrize("name", ["commitment_weight", "codebook_diversity_loss_weight"])
@pytest.mark.parametrize("values", [(0.0, 0.5), (0.5, 0.0)])
def test_a_loss_begins_and_ends_with_its_weight(name, values):
    after = values[1]
    options = {"dim": 8, "codebook_size": 16}
    module, made = (VectorQuantize(**options, **{name: value}) for value in values)
    made.load_state_dict(module.state_dict())
    setattr(module, name, after)
    x = torch.randn(2, 12, 8)
    results = []
    for each in (module, made):
        z = x.clone().requires_grad_()
        out = each(z)
        (out[0].square().sum() + out[2]).backward()
        results.append((*out, z.grad))
    torch.testing.assert_close(*results)


def test_orthogonality_needs_codes_that_were_made_for_it():
    module = VectorQuantize(dim=8, codebook_size=16)
    with pytest.raises(AttributeError, match="made without it must stay 0, got 1"):
        module.orthogonal_reg_weight = 1.0
    assert module.orthogonal_reg_weight == 0
    module = VectorQuantize(dim=8, codebook_size=16, orthogonal_reg_weight=1.0)
    module.orthogonal_reg_weight = 0.0
    module.orthogonal_reg_weight = 2.0
    parts = module(torch.randn(2, 12, 8), return_loss_breakdown=True)[3]
    assert parts.orthogonal_reg > 0
