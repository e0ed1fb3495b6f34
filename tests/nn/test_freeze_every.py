"""Every kind of quantizer can be frozen: it then keeps its codes packed and gives the same bits."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from every_quantizer import BATCH, DIM, LENGTH, QUANTIZERS, Quantizer, tensors
from torch import Tensor, nn

import vqvae_fast
from vqvae_fast import VQVAE, RandomProjectionQuantizer, ResidualVQ, SimVQ, VectorQuantize
from vqvae_fast.nn import VectorQuantizer
from vqvae_fast.nn.codebook import kept_pack
from vqvae_fast.sharded import ShardedVectorQuantizer

REFUSED = ("ResidualVQ implicit", "ResidualVQ beams")
_LEARNED = {"learnable_codebook": True, "ema_update": False}


def vq(**options: object) -> Quantizer:
    return Quantizer(lambda: VectorQuantize(DIM, 16, **options))


def residual(**options: object) -> Quantizer:
    return Quantizer(
        lambda: ResidualVQ(**{"dim": DIM, "codebook_size": 16, "num_quantizers": 3} | options)
    )


def model() -> nn.Module:
    return VQVAE(16, 4, 1, 16, 8, downsampling=1)


KINDS = {name: kind for name, kind in QUANTIZERS.items() if name not in REFUSED} | {
    "VectorQuantize cosine learned": vq(use_cosine_sim=True, **_LEARNED),
    "VectorQuantize cosine search": vq(cosine_search=True, **_LEARNED),
    "VectorQuantize one book for heads": vq(heads=4, codebook_dim=2),
    "VectorQuantize cosine heads": vq(
        heads=2, separate_codebook_per_head=True, use_cosine_sim=True, codebook_dim=8
    ),
    "VectorQuantize channels first": Quantizer(
        lambda: VectorQuantize(DIM, 16, channel_last=False), (BATCH, DIM, LENGTH)
    ),
    "VectorQuantize network": Quantizer(
        lambda: VectorQuantize(
            DIM, 16, vq_bridge=nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(16))
        )
    ),
    "ResidualVQ DAC": residual(
        codebook_dim=4, project_per_stage=True, cosine_search=True, **_LEARNED
    ),
    "ResidualVQ projected stages": residual(codebook_dim=4, project_per_stage=True),
    "ResidualVQ cosine": residual(use_cosine_sim=True),
    "ResidualVQ cosine shared": residual(use_cosine_sim=True, shared_codebook=True),
    "ResidualVQ affine": residual(affine_param=True),
    "ResidualVQ sizes": residual(codebook_size=(16, 8, 4), num_quantizers=None),
    "SimVQ narrow": Quantizer(
        lambda: SimVQ(DIM, 16, nn.Sequential(nn.Linear(4, DIM), nn.Tanh()), frozen_codebook_dim=4)
    ),
    "RandomProjectionQuantizer books": Quantizer(
        lambda: RandomProjectionQuantizer(
            dim=DIM, codebook_size=16, codebook_dim=4, num_codebooks=3
        )
    ),
    "VQVAE": Quantizer(model, (2, 3, 8, 8)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Quantizer:
    return KINDS[request.param]


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what was packed."""
    shapes: list[torch.Size] = []

    def counted(books: Tensor) -> vqvae_fast.PackedCodebook:
        shapes.append(books.shape)
        return vqvae_fast.pack(books)

    monkeypatch.setattr(kept_pack, "pack", counted)
    return shapes


def made(kind: Quantizer) -> nn.Module:
    """A quantizer after a training step, in eval."""
    torch.manual_seed(0)
    module = kind.make()
    module(torch.randn(kind.shape))
    return module.eval()


def unfrozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).unfreeze()


@torch.no_grad()
def check(module: nn.Module, x: Tensor) -> list[Tensor]:
    """A frozen module gives the bits of the same module unfrozen."""
    found, wanted = tensors(module(x)), tensors(unfrozen(module)(x))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    return found


def test_it_packs_once_and_gives_the_same_bits(kind: Quantizer, packs: list) -> None:
    module = made(kind)
    assert module.freeze() is module
    assert module.packed_nbytes == 0
    for _ in range(2):
        check(module, torch.randn(kind.shape))
    first = len(packs)
    assert first >= 1
    assert module.packed_nbytes > 0
    check(module, torch.randn((1, *kind.shape[1:])))
    assert len(packs) == first
    module.train()
    assert module.packed_nbytes == 0


@pytest.mark.parametrize(
    "name", ["VectorQuantize affine", "VectorQuantize network", "SimVQ narrow", "ResidualVQ DAC"]
)
def test_a_change_in_place_is_seen(name: str) -> None:
    """Also of what the codes are made from: statistics, and the weights of networks."""
    module, x = made(KINDS[name]).freeze(), torch.randn(KINDS[name].shape)
    check(module, x)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            check(module, x)


@pytest.mark.quick(8)
def test_a_change_of_any_tensor_is_seen(kind: Quantizer) -> None:
    module, x = made(kind).freeze(), torch.randn(kind.shape)
    check(module, x)
    names = [n for n, t in module.state_dict().items() if t.is_floating_point()]
    for name in names:
        with torch.no_grad():
            module.state_dict()[name].copy_(torch.randn_like(module.state_dict()[name]))
        check(module, x)
    other = made(kind)
    module.load_state_dict(other.state_dict())
    check(module, x)
    module.load_state_dict(kind.make().eval().state_dict(), assign=True)
    check(module, x)
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                getattr(part, name).data = torch.randn_like(tensor)
                check(module, x)


def test_training_is_as_before(kind: Quantizer, packs: list) -> None:
    module, x = made(kind).freeze(), torch.randn(kind.shape)
    check(module, x)
    packs.clear()
    other = unfrozen(module)
    for each in (module, other):
        each.train()
        torch.manual_seed(1)
        for part in tensors(each(x)):
            if part.requires_grad:
                part.float().sum().backward(retain_graph=True)
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    assert not packs or isinstance(module, RandomProjectionQuantizer)  # it is always in eval
    module.eval()
    check(module, x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen_too(kind: Quantizer, copied: Callable, packs: list) -> None:
    module, x = made(kind).freeze(), torch.randn(kind.shape)
    wanted = check(module, x)
    packs.clear()
    other = copied(module)
    assert other.packed_nbytes == 0
    for mine, theirs in zip(check(other, x), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert packs


def test_a_gradient_for_the_codes_is_that_of_the_unfrozen(packs: list) -> None:
    cases = [
        VectorQuantize(DIM, 16, **_LEARNED),
        VectorQuantize(DIM, 16, cosine_search=True, **_LEARNED),
        VectorQuantizer(16, DIM),
        SimVQ(DIM, 16),
        residual(codebook_dim=4, project_per_stage=True, cosine_search=True, **_LEARNED).make(),
    ]
    for module in cases:
        shape = (2, DIM, 3, 3) if isinstance(module, VectorQuantizer) else (2, 5, DIM)
        other = copy.deepcopy(module.eval())
        module.freeze()
        x = torch.randn(shape)
        check(module, x)
        packs.clear()
        for each in (module, other):
            parts = [part for part in tensors(each(x)) if part.requires_grad]
            sum(part.sum() for part in parts).backward()
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
        assert not packs
        assert module.packed_nbytes == 0  # a fused optimizer may write next


def test_the_gradient_to_the_vectors_is_that_of_the_unfrozen(packs: list) -> None:
    for module, shape in [
        (VectorQuantizer(16, DIM, learning="ema"), (2, DIM, 3, 3)),
        (VectorQuantize(DIM, 16), (2, 5, DIM)),
        (VectorQuantize(DIM, 16, codebook_dim=4), (2, 5, DIM)),
    ]:
        frozen, gradients = copy.deepcopy(module.eval()).freeze(), []
        for each in (module, frozen):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
            for part in tensors(each(x)):
                if part.requires_grad:
                    part.sum().backward(retain_graph=True)
            gradients.append(x.grad)
        assert packs
        packs.clear()
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 3 > 0},
        {"lens": torch.tensor([1, 8, 3, 0])},
        {"topk": 3},
        {"indices": torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 16},
        {"return_loss_breakdown": True},
        {"codebook_transform_fn": lambda codes: codes[:, None, None].expand(1, 4, 8, 16, DIM) * 2},
        {"sample_codebook_temp": 1.0},
        {"freeze_codebook": True},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
@pytest.mark.parametrize("cosine", [False, True])
def test_every_argument_of_a_call(arguments: dict, cosine: bool) -> None:
    module = made(vq(use_cosine_sim=cosine, stochastic_sample_codes=True)).freeze()
    other, x = unfrozen(module), torch.randn(BATCH, LENGTH, DIM)
    with torch.no_grad():
        module(x)
        found, wanted = module(x, **arguments), other(x, **arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_wider_and_narrower_vectors_and_models() -> None:
    for module in (
        made(vq()),
        made(vq(cosine_search=True)),
        made(QUANTIZERS["SimVQ"]),
        made(KINDS["ResidualVQ DAC"]),
    ):
        module.freeze()
        x = torch.randn(BATCH, LENGTH, DIM)
        check(module, x)
        if not (isinstance(module, ResidualVQ) and module.layers[0].has_projections):
            check(module, x.double())
            check(module, x.bfloat16())
        check(module, x)
        check(module.double(), x.double())
        check(module.bfloat16(), x.bfloat16())
        with torch.autocast("cpu"):
            check(module.float(), x)


def test_values_that_are_not_finite() -> None:
    x = torch.randn(BATCH, LENGTH, DIM)
    x[0, 0, 0], x[1, 0, 1], x[2, 0] = float("nan"), float("inf"), 0
    for name in ("VectorQuantize", "VectorQuantize cosine", "ResidualVQ DAC", "ResidualVQ cosine"):
        check(made(KINDS[name]).freeze(), x)


def test_the_measure_may_be_changed(packs: list) -> None:
    """A pack of directions does not serve a search of the codes themselves."""
    module, x = made(vq()).freeze(), torch.randn(BATCH, LENGTH, DIM)
    by_distance = check(module, x)[1]
    module.cosine_search = True
    assert not torch.equal(check(module, x)[1], by_distance)
    assert len(packs) == 2


def test_another_network_of_the_same_weights(packs: list) -> None:
    module, x = made(QUANTIZERS["SimVQ"]).freeze(), torch.randn(BATCH, LENGTH, DIM)
    check(module, x)
    module.code_transform = nn.Sequential(module.code_transform, nn.Tanh()).eval()
    check(module, x)
    assert len(packs) == 2


def test_a_network_that_draws_numbers_is_not_kept(packs: list) -> None:
    module = SimVQ(DIM, 16, nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5))).eval().freeze()
    module.code_transform.train()
    module(torch.randn(2, 5, DIM))
    assert not packs


def test_books_that_are_shared_are_packed_once(packs: list) -> None:
    module = made(KINDS["ResidualVQ cosine shared"]).freeze()
    check(module, torch.randn(BATCH, LENGTH, DIM))
    assert packs == [(1, 16, DIM)]


def test_one_object_for_the_books_of_heads(packs: list) -> None:
    module = made(KINDS["RandomProjectionQuantizer books"]).freeze()
    check(module, torch.randn(BATCH, LENGTH, DIM))
    assert packs == [(3, 16, 12)]


def test_verify_finds_what_torch_does_not_count() -> None:
    module, x = made(QUANTIZERS["SimVQ"]).freeze(verify=True), torch.randn(2, 5, DIM)
    check(module, x)
    module.code_transform.weight.detach().numpy()[0, 0] += 1
    with torch.no_grad(), pytest.raises(RuntimeError, match="in a way that torch does not count"):
        module(x)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResidualVQ implicit", "without implicit_neural_codebook"),
        ("ResidualVQ beams", "set its eval_beam_size to 1, got 2"),
    ],
)
def test_what_cannot_be_frozen(name: str, message: str) -> None:
    module = QUANTIZERS[name].make()
    with pytest.raises(ValueError, match=message):
        module.freeze()
    other = made(vq())
    with pytest.raises(ValueError, match=message):
        vqvae_fast.freeze(nn.ModuleList([other, module]))
    with torch.no_grad():
        other(torch.randn(2, 5, DIM))
    assert other.packed_nbytes == 0


def test_beams_that_are_for_training_alone() -> None:
    module = made(residual(beam_size=2, eval_beam_size=1)).freeze()
    x = torch.randn(BATCH, LENGTH, DIM)
    check(module, x)
    assert module.packed_nbytes > 0
    with torch.no_grad():
        found, wanted = module(x, beam_size=2), unfrozen(module)(x, beam_size=2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_codes_over_processes_cannot_be_frozen() -> None:
    module = ShardedVectorQuantizer.__new__(ShardedVectorQuantizer)
    nn.Module.__init__(module)
    with pytest.raises(ValueError, match="a ShardedVectorQuantizer cannot be frozen"):
        vqvae_fast.freeze(nn.Sequential(module))


def test_freezing_again_after_the_kind_has_changed(packs: list) -> None:
    """One book of all stages, and then one of each, not both."""
    module, x = made(residual()).freeze(), torch.randn(BATCH, LENGTH, DIM)
    check(module, x)
    module.layers[1].cosine_search = True
    module.freeze()
    assert module.packed_nbytes == 0
    check(module, x)
    assert packs == [(3, 16, DIM), (1, 16, DIM), (1, 16, DIM), (1, 16, DIM)]
    assert module._kept_pack is None


def test_several_threads_at_once() -> None:
    module = made(KINDS["ResidualVQ DAC"]).freeze()
    vectors = torch.randn(4, 1, 5, DIM)
    with torch.no_grad():
        wanted = [unfrozen(module)(x)[1] for x in vectors]

    def is_right(place: int) -> bool:
        with torch.no_grad():
            found = [module(vectors[place])[1] for _ in range(50)]
        return all(torch.equal(indices, wanted[place]) for indices in found)

    with ThreadPoolExecutor(len(vectors)) as pool:
        assert all(pool.map(is_right, range(len(vectors))))


def test_a_forked_process_has_it() -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    module, x = made(KINDS["ResidualVQ DAC"]).freeze(), torch.randn(1, 5, DIM)
    wanted = check(module, x)[1].tolist()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def search() -> None:
        with torch.no_grad():
            results.put(module(x)[1].tolist())

    child = context.Process(target=search)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert results.get() == wanted


TRACED = ["VectorQuantize cosine search", "VectorQuantizer", "SimVQ", "ResidualVQ DAC"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_compiled(name: str) -> None:
    module, x = made(KINDS[name]).freeze(), torch.randn(KINDS[name].shape)
    wanted = check(module, x)
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        found = tensors(compiled(x))
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_exported(name: str) -> None:
    module, x = made(KINDS[name]).freeze(), torch.randn(KINDS[name].shape)
    wanted = check(module, x)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    with torch.no_grad():
        found = tensors(torch.export.load(file).module()(x))
    torch.testing.assert_close(found, wanted)


def test_no_pack_is_made_between_backward_and_a_fused_step() -> None:
    """torch does not count what a fused optimizer writes."""
    module = vqvae_fast.VectorQuantize(
        dim=16, codebook_size=512, learnable_codebook=True, ema_update=False
    )
    module.eval().freeze()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    x = torch.randn(2, 40, 16)
    module(x.clone().requires_grad_())[0].square().sum().backward()
    with torch.no_grad():
        module(x)
        assert module.packed_nbytes == 0
        optimizer.step()
        optimizer.zero_grad()
        found = module(x)[1]
        assert module.packed_nbytes > 0
        assert torch.equal(found, copy.deepcopy(module).unfreeze()(x)[1])


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 8, "project_per_stage": True}])
@pytest.mark.parametrize("grad", [False, True])
def test_a_stage_in_training_learns(options: dict, grad: bool) -> None:
    module = vqvae_fast.ResidualVQ(dim=16, num_quantizers=2, codebook_size=300, **options)
    module.eval()
    module.layers[0].train()
    x = torch.randn(2, 40, 16)
    before = module.layers[0]._codebook.embed.clone()
    with torch.set_grad_enabled(grad):
        loss = module(x)[2]
    assert loss[..., 0] > 0
    assert not torch.equal(module.layers[0]._codebook.embed, before)
