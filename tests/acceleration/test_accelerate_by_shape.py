"""accelerate() on classes that are copied from one repository to the next, by their shape."""

import copy
import warnings

import pytest
import torch
from classes_by_shape import (
    LlamaGen,
    LossFirst,
    Quantize,
    Remapped,
    Second,
    SimVQ,
    Table,
    WithOneHot,
    distances,
)
from same_results import (
    accelerated,
    assert_eval_is_as_before,
    assert_nearest,
    assert_same,
    assert_undone,
    count_of_misses,
    leaves,
    outcome,
)
from torch import Tensor, nn
from torch.nn import functional as nn_functional

import vqvae_fast
from vqvae_fast import accelerate, compare

K, D = 48, 6
USED = torch.arange(0, K, 3)

QUANTIZERS = {
    "taming": lambda: WithOneHot(K, D, 0.4),
    "first VQ-VAE": lambda: LossFirst(K, D, 0.4),
    "taming 2": lambda: Second(K, D, 0.4),
    "latent diffusion": lambda: Second(K, D, 0.4, legacy=False, sane_index_shape=True),
    "remapped": lambda: Second(K, D, 0.4, used=USED),
    "SimVQ": lambda: SimVQ(K, D),
    "SimVQ, no bias": lambda: SimVQ(K, D, bias=False, legacy=False, sane_index_shape=True),
    "LlamaGen": lambda: LlamaGen(K, D, 0.4, 0.0, True, True),
    "LlamaGen, entropy": lambda: LlamaGen(K, D, 0.4, 0.1, True, False),
    "LlamaGen, Euclidean": lambda: LlamaGen(K, D, 0.4, 0.0, False, False),
    "VQ-VAE-2": lambda: Quantize(D, K),
}


@pytest.fixture(params=QUANTIZERS)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    torch.manual_seed(0)
    return QUANTIZERS[name]()


@pytest.fixture
def z(name):
    torch.manual_seed(1)
    z = torch.randn(2, D, 5, 7)
    return z.permute(0, 2, 3, 1) if name == "VQ-VAE-2" else z


def _indices(result) -> Tensor:
    """The last integers of a result are its codes."""
    return [part for part in leaves(result) if getattr(part, "dtype", None) == torch.int64][-1]


def _codebook(module) -> Tensor:
    if isinstance(module, Quantize):
        return module.embed.t()
    if isinstance(module, SimVQ):
        return module.embedding_proj(module.embedding.weight)
    weight = module.embedding.weight
    return nn_functional.normalize(weight) if getattr(module, "l2_norm", False) else weight


@pytest.mark.parametrize("gradients", [False, True])
def test_eval_is_as_before(module, z, gradients):
    with torch.set_grad_enabled(gradients):
        assert_eval_is_as_before(module, z)


def test_training_steps_are_as_before(module, z):
    module.train()
    ours = accelerated(module)
    for step in range(4):
        batch = z + step
        assert_same(outcome(ours, batch), outcome(module, batch), tolerance=1e-4)
        with torch.no_grad():
            for part in (ours, module):
                for parameter in part.parameters():
                    parameter -= 0.05 if parameter.grad is None else 0.05 * parameter.grad
    ours.eval()
    module.eval()
    assert_same(outcome(ours, z), outcome(module, z), tolerance=1e-4)


@torch.no_grad()
def test_codes_are_the_nearest_where_the_original_misses_them(name, module):
    if name in ("remapped", "LlamaGen, entropy"):
        pytest.skip("as another one; indices of the former are not codes")
    module.eval()
    codes = module.embed if isinstance(module, Quantize) else module.embedding.weight
    ours = accelerated(module)
    for part in (ours, module):
        torch.manual_seed(2)
        own = part.embed if isinstance(part, Quantize) else part.embedding.weight
        own.normal_(mean=1000.0)
    assert codes.mean() > 900
    codebook = _codebook(module)
    z = codebook[torch.randint(K, (2 * 9 * 9,))]
    z = (z + 0.6 * codebook.std(dim=0) * torch.randn_like(z)).view(2, 9, 9, D)
    rows = nn_functional.normalize(z, dim=-1) if getattr(module, "l2_norm", False) else z
    given = z if isinstance(module, Quantize) else z.permute(0, 3, 1, 2)
    assert_nearest(_indices(ours(given)), rows, codebook)
    assert count_of_misses(_indices(module(given)), rows, codebook) > 0
    (judged,) = compare(ours, given)
    assert judged.vectors == 162
    assert judged.ours_nearer > 0
    assert judged.theirs_nearer == 0


@pytest.mark.parametrize("training", [False, True])
def test_special_values_are_as_before(name, module, z, training):
    if name == "VQ-VAE-2" and training:
        pytest.skip("its matrix product spreads a NaN to all codes")
    z[0, 1, 1, 2] = torch.nan
    module.train(training)
    ours = accelerated(module)
    with torch.no_grad():
        assert_same(outcome(ours, z), outcome(module, z))


@pytest.mark.parametrize("training", [False, True])
def test_empty_batches_are_as_before(module, z, training):
    module.train(training)
    ours = accelerated(module)
    try:
        expected = outcome(module, z[:0])
    except RuntimeError:
        pytest.skip("the original cannot")
    assert_same(outcome(ours, z[:0]), expected)


@pytest.mark.parametrize("training", [False, True])
def test_sixteen_bits_and_autocast_keep_the_dtypes(module, z, training):
    module.train(training)
    ours = accelerated(module)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = outcome(ours, z), outcome(module, z)
        found += outcome(ours, z.bfloat16())  # what a layer before it gives
        expected += outcome(module, z.bfloat16())
    ours.bfloat16()
    module.bfloat16()
    found += outcome(ours, z.bfloat16())
    expected += outcome(module, z.bfloat16())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_float64(module, z):
    module.double()
    ours = accelerated(module)
    assert_same(outcome(ours, z.double()), outcome(module, z.double()), tolerance=1e-12)


def test_undo(module, z):
    assert_undone(module.eval(), z)
    assert_undone(module.train(), z)


def test_the_trial_draws_no_random_numbers_and_changes_nothing(module):
    state = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate(module, quiet=True)
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert all(torch.equal(module.state_dict()[key], state[key]) for key in state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_trial_does_not_depend_on_where_it_is_called(module):
    module.bfloat16()  # in which the original misses codes
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with context:
            done = accelerate(module, quiet=True)
        assert (len(done.accelerated), done.left) == (1, [])
        done.undo()


def test_the_trial_judges_no_rounding(module):
    codes = module.embed if isinstance(module, Quantize) else module.embedding.weight
    with torch.no_grad():
        codes.normal_(mean=2000.0)  # where the original misses codes
    assert accelerate(module, quiet=True).left == []


def test_a_second_call_finds_it_accelerated(module, z):
    ours = accelerated(module)
    cls = type(ours)
    again = accelerate(ours, quiet=True)
    assert type(ours) is cls
    assert again.left == []
    again.undo()
    assert type(ours) is type(module)


class Inner(Second):
    """The code of the largest inner product."""

    def parts(self, z, codes):
        z = z.permute(0, 2, 3, 1)
        indices = (z.reshape(-1, self.e_dim) @ codes.t()).argmax(dim=1)
        chosen = self.embedding(indices).view(z.shape)
        commitment, codebook = self.losses(z, chosen)
        quantized = (z + (chosen - z).detach()).permute(0, 3, 1, 2).contiguous()
        return quantized, commitment + self.beta * codebook, indices


class Manhattan(Second):
    """The nearest code by absolute differences."""

    def parts(self, z, codes):
        rows = z.permute(0, 2, 3, 1).reshape(-1, self.e_dim)
        quantized, loss, _ = super().parts(z, codes)
        return quantized, loss, torch.cdist(rows, codes, p=1).argmin(dim=1)


class Swapped(WithOneHot):
    """beta weighs the commitment, without an attribute that says so."""

    def losses(self, z, chosen):
        commitment, codebook = super().losses(z, chosen)
        return codebook, commitment


class Frozen(Second):
    """The codes get no gradient."""

    def losses(self, z, chosen):
        return super().losses(z, chosen.detach())


class WithoutStraightThrough(Second):
    """The gradient of the vectors is lost."""

    def parts(self, z, codes):
        quantized, loss, indices = super().parts(z, codes)
        return quantized.detach(), loss, indices


class Noisy(Second):
    """In training it adds noise, in eval it is as its shape says."""

    def parts(self, z, codes):
        return super().parts(z + torch.randn_like(z) if self.training else z, codes)


class Elsewhere(Second):
    """Its forward takes something else."""

    def forward(self, z, context):
        return super().forward(z + context)


class SlowAverage(Quantize):
    """Its codes move on before they are looked up."""

    def embed_code(self, indices):
        self.embed.data.mul_(0.5)
        return super().embed_code(indices)


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        (Inner(K, D, 0.4), "in eval it computes something else"),
        (Manhattan(K, D, 0.4), "in eval it computes something else"),
        (Swapped(K, D, 0.4), "in training it computes something else"),
        (Frozen(K, D, 0.4), "in training it computes something else"),
        (WithoutStraightThrough(K, D, 0.4), "in training it computes something else"),
        (Noisy(K, D, 0.4), "in training it computes something else"),
        (Elsewhere(K, D, 0.4), "a trial in eval failed: TypeError: "),
        (SlowAverage(D, K), "it computes something else"),
        (Remapped(K, D, 0.4), "a trial in eval failed: NotImplementedError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_trial_leaves_another_mathematics_alone(quantizer, reason):
    model = nn.Sequential(nn.Identity(), quantizer)
    done = accelerate(model, quiet=True)
    assert done.accelerated == []
    assert [(place.name, place.kind) for place in done.left] == [("1", type(quantizer).__name__)]
    assert reason in done.left[0].about
    assert type(model[1]) is type(quantizer)


def test_a_table_of_another_size_is_unknown():
    table = Table(K, D, 0.4)
    table.n_e = K + 1
    assert str(accelerate(table, quiet=True)) == "vqvae_fast accelerates 0 quantizers"


def test_quantizers_of_this_package_are_left():
    model = nn.Sequential(
        vqvae_fast.VectorQuantizer(K, D, 0.4),
        vqvae_fast.ResidualVQ(dim=D, codebook_size=K, num_quantizers=2),
    )
    done = accelerate(model, quiet=True)
    assert done.accelerated == []
    assert [place.name for place in done.left] == ["0", "1"]
    assert all("this package's own" in place.about for place in done.left)


def test_llamagen_with_an_entropy_loss_is_left_to_itself_in_training():
    module = LlamaGen(K, D, 0.4, 0.1, True, False)
    done = accelerate(module, quiet=True)
    assert "in training its entropy loss needs all distances" in str(done)


def test_a_buffer_of_llamagen_that_lies_in_a_graph():
    module = LlamaGen(K, D, 0.4, 0.0, True, True)
    # What Module.to() makes of a buffer that is a Parameter.
    module.codebook_used = nn.Parameter(module.codebook_used).clone()
    done = accelerate(module, quiet=True)
    assert len(done.accelerated) == 1


def test_options_of_the_gumbel_interface_are_checked_by_the_original():
    z = torch.randn(2, D, 3, 4)
    module = Second(K, D, 0.4).eval()
    ours = accelerated(module)
    with torch.no_grad():
        assert_same(outcome(ours, z, 1.0), outcome(module, z, 1.0))
        with pytest.raises(AssertionError):
            ours(z, 0.5)


def test_a_table_that_is_multiplied_is_not_called():
    z = torch.randn(2, D, 3, 4)
    module = WithOneHot(K, D, 0.4)
    ours = accelerated(module)
    for part in (ours, module):
        part.embedding.register_forward_hook(lambda module, inputs, output: output * 2)
    assert_same(outcome(ours, z), outcome(module, z))


def test_simvq_sees_every_change_of_its_projection():
    z = torch.randn(2, D, 3, 4)
    module = SimVQ(K, D).eval()
    ours = accelerated(module)
    with torch.no_grad():
        assert_same(outcome(ours, z), outcome(module, z))
        for part in (ours, module):
            part.embedding_proj.bias += torch.arange(D) / 3
        assert_same(outcome(ours, z), outcome(module, z))
        for part in (ours, module):
            part.embedding_proj.register_forward_hook(lambda module, inputs, output: output * 2)
        assert_same(outcome(ours, z), outcome(module, z))


def test_distances_of_the_test_are_those_of_the_definition():
    rows, codes = torch.randn(5, D), torch.randn(7, D)
    expected = (rows[:, None] - codes).square().sum(dim=2)
    torch.testing.assert_close(distances(rows, codes), expected)
