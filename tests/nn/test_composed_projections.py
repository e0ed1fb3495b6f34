"""A frozen quantizer may compose its stages' projections, and then rounds otherwise."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from composed_excess import UNIT, excess
from torch import Tensor, nn

import vqvae_fast
from vqvae_fast import ResidualVQ
from vqvae_fast.nn import GroupedResidualVQ
from vqvae_fast.nn.codebook import changes, kept_pack
from vqvae_fast.nn.drop_in import composed_stages

C, Q, K, D = 40, 4, 300, 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[composed_stages.ComposedStages]:
    """What was composed."""
    made: list[composed_stages.ComposedStages] = []
    compose = composed_stages.compose

    def counted(stages: object) -> composed_stages.ComposedStages:
        made.append(compose(stages))
        return made[-1]

    monkeypatch.setattr(composed_stages, "compose", counted)
    return made


def quantizer(bias: bool = True, dim: int = D, stages: int = Q, **options: object) -> ResidualVQ:
    arguments = {
        "dim": C,
        "num_quantizers": stages,
        "codebook_size": K,
        "codebook_dim": dim,
        "project_per_stage": True,
    }
    module = ResidualVQ(**arguments | options).eval()
    with torch.no_grad():
        for stage in module.layers:
            stage._codebook.embed.normal_()
            if not bias:
                stage.project_in.bias = stage.project_out.bias = None
    return module


def composed(module: ResidualVQ, **options: object) -> ResidualVQ:
    return copy.deepcopy(module).freeze(compose_projections=True, **options)


def answers(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return module(x)


def check(module: ResidualVQ, x: Tensor) -> tuple[Tensor, ...]:
    """Judge the codes of a composed module, and compare the vectors with the sum of its codes."""
    result = quantized, indices, losses = answers(module, x)
    assert quantized.shape == x.shape
    stages = len(module.layers)
    assert (indices.shape, losses.shape) == ((*x.shape[:-1], stages), (stages,))
    farther, allowed = excess(module, x, indices)
    assert (farther <= allowed).all()
    exact = copy.deepcopy(module).unfreeze().double()
    with torch.no_grad():
        wanted = exact.get_output_from_indices(indices)
    torch.testing.assert_close(quantized.double(), wanted, rtol=1e-5, atol=1e-5)
    return result


@pytest.mark.parametrize(
    "shape", [(1, 1, C), (1, 13, C), (2, 257, C), (5, C), (0, 3, C), (2, 0, C)]
)
@pytest.mark.parametrize("cosine_search", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_codes_are_the_nearest(
    shape: tuple, cosine_search: bool, bias: bool, compositions: list
) -> None:
    plain = quantizer(bias, cosine_search=cosine_search)
    module, x = composed(plain), torch.randn(shape)
    result = check(module, x)
    for mine, theirs in zip(result, answers(plain, x), strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    check(module, x)
    assert len(compositions) == 1


def test_the_judge_allows_no_other_code() -> None:
    module, x = quantizer(cosine_search=True), torch.randn(50, C)
    indices = answers(module, x)[1]
    for stage in range(Q):
        wrong = indices.clone()
        wrong[:, stage] = (wrong[:, stage] + 1) % K
        farther, allowed = excess(module, x, wrong)
        assert (farther > allowed)[:, stage].all()


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 1},
        {"dim": 1},
        {"dim": 9},
        {"codebook_size": (K, 17, 5, 64), "stages": None},
        {"learnable_codebook": True, "ema_update": False},
        {"quantize_dropout": True},
    ],
)
def test_sizes_and_options(options: dict, compositions: list) -> None:
    module = composed(quantizer(**options))
    check(module, torch.randn(2, 30, C))
    assert len(compositions) == 1


def test_layouts(compositions: list) -> None:
    """Channels first, and feature maps: the vectors are a transposed matrix."""
    x = torch.randn(3, C, 4, 5)
    plain = quantizer(channel_last=False, accept_image_fmap=True)
    found, wanted = answers(composed(plain), x), answers(plain, x)
    torch.testing.assert_close(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    rows = torch.randn(C, 30).t()[None, ::2]
    check(composed(quantizer()), rows)
    assert len(compositions) == 2


def test_rows_with_nan() -> None:
    module, x = composed(quantizer(cosine_search=True)), torch.randn(2, 9, C)
    wanted = answers(module, x)
    x[1, 3, 7] = torch.nan
    found = answers(module, x)
    assert found[1][1, 3].tolist() == [0] * Q
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, 3] = False
    assert torch.equal(found[1][keep], wanted[1][keep])


def into_weight(module: ResidualVQ) -> None:
    module.layers[1].project_in.weight.mul_(1.5)


def into_bias(module: ResidualVQ) -> None:
    module.layers[3].project_in.bias.add_(1)


def out_weight(module: ResidualVQ) -> None:
    module.layers[0].project_out.weight[2] -= 1


def out_bias(module: ResidualVQ) -> None:
    module.layers[2].project_out.bias.fill_(2)


def codes(module: ResidualVQ) -> None:
    module.layers[2]._codebook.embed[0, 7:] += 1


def no_bias(module: ResidualVQ) -> None:
    module.layers[1].project_out.bias = None


def other_tensor(module: ResidualVQ) -> None:
    module.layers[1].project_in.weight = nn.Parameter(torch.randn(D, C))


def other_storage(module: ResidualVQ) -> None:
    module.layers[1].project_in.weight.data = torch.randn(D, C)


def other_module(module: ResidualVQ) -> None:
    module.layers[0].project_out = nn.Linear(D, C)


def loaded(module: ResidualVQ) -> None:
    module.load_state_dict(quantizer().state_dict())


def assigned(module: ResidualVQ) -> None:
    module.load_state_dict(quantizer().state_dict(), assign=True)


def another_search(module: ResidualVQ) -> None:
    for stage in module.layers:
        stage.cosine_search = True


def trained(module: ResidualVQ) -> None:
    module.train()
    assert module.packed_nbytes == 0
    module(torch.randn(4, 20, C))
    module.eval()


CHANGES = [into_weight, into_bias, out_weight, out_bias, codes, no_bias, other_tensor]
CHANGES += [other_storage, other_module, loaded, assigned, another_search, trained]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("extension", [True, False])
def test_it_composes_anew_after_a_change(
    change: Callable, extension: bool, compositions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension:
        monkeypatch.setattr(kept_pack, "describe", changes.describe_in_python)
    module, x = composed(quantizer()), torch.randn(2, 13, C)
    before = check(module, x)
    check(module, x)
    with torch.no_grad():
        change(module)
    after = check(module, x)
    check(module, x)
    assert len(compositions) == 2
    assert not torch.equal(after[0], before[0])


def test_moving_to_another_dtype_and_back(compositions: list) -> None:
    module, x = composed(quantizer()), torch.randn(2, 13, C)
    wanted = check(module, x)
    answers(module.double(), x.double())
    assert module._composition.nbytes == 0
    for mine, theirs in zip(answers(module.float(), x), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert len(compositions) == 2


def same(module: ResidualVQ, x: Tensor, **arguments: object) -> None:
    """The module gives the bits of the same module unfrozen."""
    plain = copy.deepcopy(module).unfreeze()
    with torch.no_grad():
        found, wanted = module(x, **arguments), plain(x, **arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.layers[1].register_forward_hook(lambda *given: None),
        lambda module: module.layers[2].project_in.register_forward_hook(lambda *given: None),
        lambda module: nn.utils.parametrizations.weight_norm(module.layers[1].project_in),
        lambda module: setattr(module.layers[1], "cosine_search", True),
        lambda module: module.layers[1].train(),
        lambda module: module.unfreeze(),
        lambda module: module.freeze(),
    ],
)
def test_what_is_as_before(change: Callable, compositions: list) -> None:
    module, x = composed(quantizer(threshold_ema_dead_code=0, decay=1.0)), torch.randn(2, 13, C)
    with torch.no_grad():
        change(module)
    if module.layers[1].training:
        answers(module, x)
    else:
        same(module, x)
    assert not compositions


def test_calls_that_are_as_before(compositions: list, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = composed(quantizer()), torch.randn(2, 13, C)
    same(module, x, mask=torch.rand(2, 13) < 0.5)
    with torch.autocast("cpu"):
        same(module, x)
    assert module(x)[0].requires_grad
    monkeypatch.setattr(kept_pack, "is_distributed", lambda: True)
    same(module, x)
    assert not compositions


def test_gradients(compositions: list) -> None:
    """An optimizer may write while there are gradients, and torch need not count it."""
    module, x = composed(quantizer()), torch.randn(2, 13, C)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    check(module, x)
    module(x)[0].square().sum().backward()
    assert module._composition.nbytes == 0
    optimizer.step()
    same(module, x)
    assert len(compositions) == 1
    optimizer.zero_grad()
    check(module, x)
    assert len(compositions) == 2


@pytest.mark.slow
def test_compiled(compositions: list) -> None:
    module, x = composed(quantizer()), torch.randn(1, 13, C)
    wanted = check(module, x)
    found = answers(torch.compile(module, fullgraph=True), x)
    assert torch.equal(found[1], wanted[1])
    assert len(compositions) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compose_for_themselves(again: Callable, compositions: list) -> None:
    module, x = composed(quantizer()), torch.randn(2, 13, C)
    wanted = check(module, x)
    other = again(module)
    assert other.packed_nbytes == 0
    with torch.no_grad():
        into_weight(module)
    for mine, theirs in zip(answers(other, x), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert len(compositions) == 2


def test_several_threads_at_once(compositions: list) -> None:
    module, x = composed(quantizer()), torch.randn(8, 13, C)
    wanted = [answers(module, part[None]) for part in x]

    def is_right(place: int) -> bool:
        found = [answers(module, x[place, None]) for _ in range(50)]
        return all(
            torch.equal(part, all_)
            for one in found
            for part, all_ in zip(one, wanted[place], strict=True)
        )

    module._composition.drop()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(8)))


def test_memory(compositions: list) -> None:
    module = composed(quantizer(cosine_search=True))
    assert module.packed_nbytes == 0
    answers(module, torch.randn(1, 3, C))
    (form,) = compositions
    # Two projections and their biases, with 32 columns of Q * D = 24 and 48 of C = 40; the
    # corrections, the codes, and their directions packed.
    floats = (C + 1) * 32 + (Q * D + 1) * 48 + Q * D * Q * D + Q * K * D
    assert module.packed_nbytes == form.nbytes == 4 * floats + form.books.nbytes
    module.unfreeze()
    assert module.packed_nbytes == 0


def test_inference_mode(compositions: list) -> None:
    module, x = composed(quantizer()), torch.randn(1, 13, C)
    with torch.inference_mode():
        inside = module(x)
    assert not compositions[0].entry.is_inference()
    assert torch.equal(inside[1], check(module, x)[1])
    assert len(compositions) == 1


@pytest.mark.parametrize("name", ["project_in", "project_out"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_verify_finds_what_torch_does_not_count(name: str, part: str) -> None:
    module, x = composed(quantizer(), verify=True), torch.randn(2, 5, C)
    check(module, x)
    check(module, x)
    getattr(getattr(module.layers[1], name), part).detach().numpy()[0] += 1
    with torch.no_grad(), pytest.raises(RuntimeError, match="in a way that torch does not count"):
        module(x)


def test_quantizers_without_such_projections_ignore_the_option() -> None:
    """A model may have several quantizers, and something to compose for only some of them."""
    others = [
        ResidualVQ(dim=C, num_quantizers=2, codebook_size=K),
        ResidualVQ(dim=C, num_quantizers=2, codebook_size=K, codebook_dim=D),
        vqvae_fast.VectorQuantize(C, K, codebook_dim=D),
    ]
    model = nn.ModuleList(others).eval()
    vqvae_fast.freeze(model, compose_projections=True)
    for module in model:
        same(module, torch.randn(2, 13, C))
        assert module.packed_nbytes > 0


def test_quantizers_inside_others(compositions: list) -> None:
    arguments = {"num_quantizers": 2, "codebook_size": K, "codebook_dim": D}
    model = GroupedResidualVQ(dim=2 * C, groups=2, project_per_stage=True, **arguments).eval()
    x = torch.randn(2, 13, 2 * C)
    wanted = answers(model, x)
    found = answers(vqvae_fast.freeze(model, compose_projections=True), x)
    assert len(compositions) == 2
    torch.testing.assert_close(found[0], wanted[0])


def test_projections_to_different_sizes() -> None:
    module = composed(quantizer(codebook_size=K))
    stage = module.layers[1]
    stage.project_in, stage.project_out = nn.Linear(C, D - 1), nn.Linear(D - 1, C)
    stage._codebook.embed = torch.randn(1, K, D - 1)
    message = (
        r"have the same sizes, got weights \[\[\[5, 40\], \[40, 5\]\], \[\[6, 40\], \[40, 6\]\]\]"
    )
    with pytest.raises(ValueError, match=message):
        answers(module, torch.randn(1, 3, C))


def test_what_is_composed_is_rounded_once(compositions: list) -> None:
    """Each number is that of float64, rounded: the products' order cannot show."""
    module = composed(quantizer())
    answers(module, torch.randn(1, 3, C))
    (form,) = compositions
    with torch.no_grad():
        before = torch.zeros(C, dtype=torch.float64)
        for q, stage in enumerate(module.layers):
            own = slice(q * D, (q + 1) * D)
            into, out = stage.project_in, stage.project_out
            bias = into.bias.double() - into.weight.double() @ before
            torch.testing.assert_close(form.entry_bias[own], bias.float(), rtol=UNIT * 2, atol=0)
            assert torch.equal(form.entry[:, own], into.weight.t())
            assert torch.equal(form.exit[own, :C], out.weight.t())
            for later, other in list(enumerate(module.layers))[q + 1 :]:
                product = (other.project_in.weight.double() @ out.weight.double()).t().float()
                columns = form.corrections[q, :, later * D : (later + 1) * D]
                torch.testing.assert_close(columns, product, rtol=UNIT * 2, atol=0)
            assert not form.corrections[q, :, : (q + 1) * D].any()
            before += out.bias.double()
        torch.testing.assert_close(form.exit_bias[:C], before.float(), rtol=UNIT * 2, atol=0)
