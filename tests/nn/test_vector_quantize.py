"""What VectorQuantize does beyond the peer: where that is wrong, and what it lacks."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vqvae_fast
from vqvae_fast.nn.codebook import host_flag
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize

MASK = torch.arange(12) < torch.tensor([[5], [9]])
GRADIENT = {"learnable_codebook": True, "ema_update": False}


def quantizer(**options):
    return VectorQuantize(**{"dim": 8, "codebook_size": 16} | options)


def frozen(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
        {"codebook_dim": 3},
        {"codebook_dim": 3, "heads": 2},
        {"use_cosine_sim": True},
        GRADIENT,
        {"commitment_use_cross_entropy_loss": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("by_length", [True, False])
def test_masked_vectors_do_not_count(options, channel_last, by_length):
    """As if the others were all there is: loss, codes and what they learn."""
    options = options | {"kmeans_init": True, "threshold_ema_dead_code": 0.01}
    masked = quantizer(**options, channel_last=channel_last)
    alone = quantizer(**options)
    alone.load_state_dict(masked.state_dict())
    for module in (masked, alone):  # codes to begin with
        module.codebook = torch.randn(module.codebook.shape)
        module.load_state_dict(masked.state_dict())
    x = torch.randn(2, 12, 8)
    x[~MASK] = torch.nan
    given = x if channel_last else x.transpose(1, 2)
    how = {"lens": torch.tensor([5, 9])} if by_length else {"mask": MASK}
    quantized, indices, loss = masked(given, **how)
    expected, codes, only_loss = alone(x[MASK][None])
    quantized = quantized if channel_last else quantized.transpose(1, 2)
    torch.testing.assert_close(quantized[MASK], expected[0])
    assert not quantized[~MASK].any()
    assert torch.equal(indices[MASK], codes[0])
    assert (indices[~MASK] == -1).all()
    torch.testing.assert_close(loss, only_loss)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value)


def test_k_means_of_masked_vectors():
    module = quantizer(codebook_size=4, kmeans_init=True)
    x = torch.randn(2, 12, 8)
    x[~MASK] = 100.0
    module(x, mask=MASK)
    assert module.codebook.abs().max() < 10


def test_masks_of_feature_maps():
    module = quantizer(accept_image_fmap=True).eval()
    x, mask = torch.randn(2, 8, 3, 4), torch.rand(2, 3, 4) > 0.5
    quantized, indices, _ = module(x, mask=mask)
    assert torch.equal(indices == -1, ~mask)
    assert torch.equal(quantized.movedim(1, -1)[mask], module.codebook[indices[mask]])


@pytest.mark.parametrize(
    "options",
    [{"kmeans_init": True}, {"affine_param": True}, {"threshold_ema_dead_code": 5}, GRADIENT],
    ids=str,
)
def test_evaluation_changes_no_state(options):
    module = quantizer(**options).eval()
    before = frozen(module)
    _, _, loss = module(torch.randn(2, 12, 8))
    assert loss == 0
    assert loss.shape == ()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("cosine", [False, True])
def test_k_means_with_fewer_vectors_than_codes(cosine):
    module = quantizer(codebook_size=64, kmeans_init=True, use_cosine_sim=cosine, decay=1.0)
    x = torch.randn(1, 9, 8)
    quantized, _, _ = module(x)
    wanted = torch.nn.functional.normalize(x, dim=-1) if cosine else x
    torch.testing.assert_close(quantized, wanted, rtol=1e-3, atol=1e-3)
    assert module.codebook.abs().sum(dim=-1).min() > 0, "a code without vectors is not zero"


def test_k_means_waits_for_vectors():
    module = quantizer(kmeans_init=True)
    module(torch.randn(0, 12, 8))
    assert not module._codebook.initted
    module(torch.randn(2, 12, 8))
    assert module._codebook.initted


def test_someone_else_sets_the_codes():
    module = quantizer(kmeans_init=True)
    codes = torch.randn(16, 8)
    module._codebook.embed.copy_(codes)
    module._codebook.initted.data.copy_(torch.tensor(True))
    quantized, indices, _ = module(torch.randn(2, 12, 8))
    assert torch.equal(quantized, codes[indices])


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, GRADIENT], ids=str)
def test_a_collapsed_codebook_recovers(options):
    data = torch.nn.functional.normalize(torch.randn(64, 8), dim=-1) * 5
    module = quantizer(codebook_size=64, threshold_ema_dead_code=0.5, **options)
    module.codebook = torch.full((64, 8), 100.0)
    x = data[torch.randint(64, (20, 1, 256))] + 0.01 * torch.randn(20, 1, 256, 8)
    first = module(x[0])[1].unique().numel()
    for batch in x:
        indices = module(batch)[1]
    assert first < 10
    assert indices.unique().numel() > 45


def test_codes_that_were_set_survive_the_next_average():
    module = quantizer()
    codes = 3 + torch.randn(16, 8)
    module.codebook = codes
    module(codes[None])
    torch.testing.assert_close(module.codebook, codes, rtol=1e-4, atol=1e-4)


def test_unused_cosine_codes_keep_their_length():
    module = quantizer(use_cosine_sim=True)
    x = torch.randn(1, 1, 8).expand(1, 4, 8)
    for _ in range(600):
        module(x)
    torch.testing.assert_close(module.codebook.norm(dim=-1), torch.ones(16))


@pytest.mark.parametrize("options", [{}, GRADIENT, {"threshold_ema_dead_code": 2}], ids=str)
def test_a_vector_that_is_not_finite_destroys_nothing(options):
    module = quantizer(**options)
    x = torch.randn(2, 12, 8)
    x[0, 3], x[1, 2] = torch.nan, torch.inf
    module(x)
    assert module.codebook.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"commitment_use_cross_entropy_loss": True},
        {"codebook_diversity_loss_weight": 1.0, "codebook_diversity_temperature": 1.0},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_codes_that_were_searched(options):
    """And not of the codes that the moving average has written since."""
    moving, still = quantizer(**options), quantizer(**options, ema_update=False)
    still.load_state_dict(moving.state_dict())
    gradients = []
    for module in (moving, still):
        x = torch.linspace(-1, 1, 192).view(2, 12, 8).requires_grad_()
        module(x)[2].backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert not torch.equal(moving.codebook, still.codebook)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"heads": 2, "codebook_dim": 3}, (2, 12, 8)),
        ({"heads": 2, "codebook_dim": 4}, (2, 12, 8)),
        ({"codebook_dim": 3, "accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"heads": 2, "codebook_dim": 3, "accept_3d_fmap": True}, (2, 8, 2, 3, 2)),
        ({"codebook_dim": 3, "channel_last": False}, (2, 8, 12)),
        ({"codebook_dim": 3}, (5, 8)),
        ({"codebook_dim": 3}, (2, 3, 4, 8)),
        ({"affine_param": True}, (2, 12, 8)),
        ({"vq_bridge": torch.nn.Linear(8, 8)}, (2, 12, 8)),
        ({"use_cosine_sim": True, **GRADIENT}, (2, 12, 8)),
    ],
    ids=str,
)
def test_indices_decode_to_what_forward_gave(options, shape):
    module = quantizer(**options)
    module(torch.randn(shape))
    quantized, indices, _ = module.eval()(torch.randn(shape))
    assert quantized.shape == shape
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


def test_dropped_indices_decode_to_zeros():
    module = quantizer()
    codes = module.get_codes_from_indices(torch.tensor([[3, -1]]))
    assert torch.equal(codes[0, 0], module.codebook[3])
    assert not codes[0, 1].any()


def test_projections_learn_from_an_input_without_gradient():
    module = quantizer(codebook_dim=3)
    quantized, _, _ = module(torch.randn(2, 12, 8))
    quantized.sum().backward()
    assert module.project_in.weight.grad.any()


def test_indices_given_return_the_output():
    module = quantizer(codebook_dim=3, accept_image_fmap=True).eval()
    x = torch.randn(2, 8, 3, 4)
    quantized, indices, _ = module(x)
    again, loss = module(x, indices=indices)
    torch.testing.assert_close(again, quantized)
    assert loss > 0


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_cosine_similarity_with_a_learnable_codebook(rotation_trick):
    module = quantizer(use_cosine_sim=True, rotation_trick=rotation_trick, **GRADIENT)
    with torch.no_grad():
        module._codebook.embed.mul_(7)
    x = torch.randn(2, 12, 8, requires_grad=True)
    quantized, indices, loss = module(x)
    unit = torch.nn.functional.normalize(module.codebook, dim=-1)
    direction = torch.nn.functional.normalize(x, dim=-1)
    assert torch.equal(indices, (direction @ unit.T).argmax(dim=-1))
    torch.testing.assert_close(quantized, unit[indices])
    loss.backward()
    along = (module._codebook.embed.grad[0] * unit).sum(dim=-1)
    torch.testing.assert_close(along, torch.zeros(16), atol=1e-6, rtol=0)
    assert module._codebook.embed.grad.any()


def test_the_search_of_a_bfloat16_model_is_exact():
    module = quantizer(codebook_size=512).bfloat16()
    assert module._codebook.embed.dtype == torch.float32
    x = torch.randn(2, 100, 8).bfloat16()
    quantized, indices, _ = module.eval()(x)
    assert quantized.dtype == torch.bfloat16
    assert torch.equal(indices, vqvae_fast.nearest_code(x.float(), module.codebook).indices)
    module.train()(x.requires_grad_())[2].backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"codebook_diversity_loss_weight": 1.0}], ids=str)
def test_autocast_leaves_the_search_alone(options):
    module = quantizer(codebook_size=512, **options)
    x = torch.randn(2, 100, 8)
    wanted = module.eval()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
    assert torch.equal(got[1], wanted[1])
    assert torch.equal(got[0], wanted[0])


TRAINING = [
    {},
    {"rotation_trick": False},
    {"threshold_ema_dead_code": 2},
    {"kmeans_init": True, "threshold_ema_dead_code": 2, "use_cosine_sim": True},
    {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    {"codebook_dim": 3, "accept_image_fmap": True},
    GRADIENT,
    {**GRADIENT, "use_cosine_sim": True, "sync_update_v": 0.3},
    {"affine_param": True},
    {"commitment_use_cross_entropy_loss": True},
    {"codebook_diversity_loss_weight": 0.5},
    {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
    {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 5},
    {"stochastic_sample_codes": True, "straight_through": True},
    {"directional_reparam": True, "threshold_ema_dead_code": 1},
]


def inputs_of(options):
    return torch.randn((2, 8, 3, 4) if "accept_image_fmap" in options else (2, 12, 8))


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


def test_an_empty_batch():
    module = quantizer(threshold_ema_dead_code=2)
    before = frozen(module)
    quantized, indices, _ = module(torch.randn(0, 12, 8))
    assert quantized.shape == (0, 12, 8)
    assert indices.shape == (0, 12)
    assert module._codebook.embed.isfinite().all()
    assert set(before) == set(module.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 8)),
        ({}, (2, 3, 4, 8)),
        ({"accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"channel_last": False}, (2, 8, 12)),
    ],
    ids=str,
)
def test_the_parts_of_the_losses_of_several_codes(options, shape, training):
    module = quantizer(commitment_weight=0.5, **options).train(training)
    _, indices, loss, parts = module(torch.randn(shape), topk=3, return_loss_breakdown=True)
    assert parts.commitment.shape == loss.shape == indices.shape
    torch.testing.assert_close(loss, 0.5 * parts.commitment)


@pytest.mark.parametrize("by_name", [True, False], ids=["by its name", "by the next step"])
@pytest.mark.parametrize("kmeans_init", [True, False])
def test_k_means_again(kmeans_init, by_name):
    """Users clear the buffer, and call k-means by its name or train on."""
    module = quantizer(kmeans_init=kmeans_init)
    module(torch.randn(2, 12, 8))
    initted = module._codebook.initted
    if by_name:
        initted.data.copy_(torch.tensor(False))
        module._codebook.init_embed_(50 + torch.randn(1, 24, 8))
    else:
        initted.fill_(False)
        module.eval()(torch.randn(2, 12, 8))
        assert not initted
        module.train()(50 + torch.randn(2, 12, 8))
    assert initted
    assert module.codebook.mean() > 40


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "shape"),
    [(GRADIENT, (2, 12, 8)), (GRADIENT | {"accept_image_fmap": True}, (2, 8, 3, 4))],
    ids=["tokens", "feature map"],
)
def test_the_result_may_be_written_to(options, shape, training):
    quantized, _, _ = quantizer(**options).train(training)(torch.randn(shape, requires_grad=True))
    torch.nn.functional.relu(quantized, inplace=True)
    assert (quantized >= 0).all()


def test_a_functional_call_starts_its_own_tensors():
    module = quantizer(kmeans_init=True)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 12, 8)
    torch.func.functional_call(module, own, (x,))
    assert own["_codebook.initted"]
    assert own["_codebook.embed"].any()
    assert not module._codebook.initted
    quantized, _, _ = module(x)
    assert module._codebook.initted
    assert quantized.any(), "the module's own codes would be zeros"


def test_a_frozen_codebook_has_no_gradient():
    module = quantizer(orthogonal_reg_weight=0.5, freeze_codebook=True)
    module(torch.randn(2, 12, 8, requires_grad=True))[2].backward()
    assert module._codebook.embed.grad is None


def test_two_calls_before_one_backward_pass():
    module = quantizer(orthogonal_reg_weight=0.5, threshold_ema_dead_code=2)
    first, second = (module(torch.randn(2, 12, 8))[2] for _ in range(2))
    (first + second).backward()
    assert module._codebook.embed.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}], ids=str)
def test_decoding_in_a_bfloat16_model(options):
    module = quantizer(**options).bfloat16().eval()
    quantized, indices, _ = module(torch.randn(2, 12, 8).bfloat16())
    decoded = module.get_output_from_indices(indices)
    assert decoded.dtype == torch.bfloat16
    torch.testing.assert_close(decoded, quantized)


def test_losses_that_someone_writes_to():
    module = quantizer()
    x = torch.randn(2, 12, 8)
    module.eval()(x, return_loss_breakdown=True)[3].commitment.add_(5)
    assert module(x)[2] == 0


def test_a_number_as_the_weight_of_an_update():
    whole, number = quantizer(), quantizer()
    number.load_state_dict(whole.state_dict())
    x = torch.randn(2, 12, 8)
    whole(x, ema_update_weight=torch.full((16,), 0.5))
    number(x, ema_update_weight=0.5)
    assert torch.equal(whole.codebook, number.codebook)


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


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"x must be a tensor of floats, got torch\.int64"):
        quantizer()(torch.zeros(2, 8, dtype=torch.int64))


def test_older_checkpoints_load():
    """initted was [1] and a float once."""
    module = quantizer(kmeans_init=True)
    state = quantizer().state_dict()
    state["_codebook.initted"] = torch.tensor([1.0])
    module.load_state_dict(state)
    assert module._codebook.initted.dtype == torch.bool
    x = torch.randn(2, 12, 8)
    quantized, indices, _ = module(x)
    assert torch.equal(quantized, state["_codebook.embed"][0][indices])


def test_manual_in_place_update_waits_to_be_asked():
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    module = quantizer(
        **GRADIENT,
        in_place_codebook_optimizer=optimizer,
        manual_in_place_optimizer_update=True,
    )
    before = frozen(module)
    module(torch.randn(2, 12, 8))
    assert torch.equal(module._codebook.embed, before["_codebook.embed"])
    module.update_in_place_optimizer()
    assert not torch.equal(module._codebook.embed, before["_codebook.embed"])
