"""A frozen quantizer packs its codebooks once, and anew after every change that torch counts."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import vqvae_fast
from vqvae_fast import ResidualVQ, functional
from vqvae_fast.nn import GroupedResidualVQ, SplitResidualVQ
from vqvae_fast.nn.codebook import kept_pack

Q, K, D = 3, 300, 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The books of every packing."""
    packed: list[Tensor] = []

    def counted(books: Tensor) -> vqvae_fast.PackedCodebook:
        packed.append(books)
        return vqvae_fast.pack(books)

    monkeypatch.setattr(kept_pack, "pack", counted)
    return packed


def quantizer(**arguments: object) -> ResidualVQ:
    return ResidualVQ(dim=D, num_quantizers=Q, codebook_size=K, **arguments).eval()


def answers(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return module(x)


def check(module: ResidualVQ, x: Tensor) -> None:
    """The frozen module against the same without its pack."""
    found = answers(module, x)
    kept, module._kept_pack = module._kept_pack, None
    wanted = answers(module, x)
    module._kept_pack = kept
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shape", [(1, 1, D), (2, 13, D), (0, 3, D)])
def test_it_packs_once_and_changes_no_answer(packs: list, shape: tuple) -> None:
    module, x = quantizer().freeze(), torch.randn(shape)
    assert not packs
    for _ in range(3):
        check(module, x)
    assert [books.shape for books in packs] == [(Q, K, D)]
    assert module._kept_pack.nbytes >= 4 * Q * K * D


def test_the_pack_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = quantizer().freeze(), []
    search = functional.residual_nearest_code

    def watched(z: Tensor, books: object) -> object:
        seen.append(type(books))
        return search(z, books)

    monkeypatch.setattr(functional, "residual_nearest_code", watched)
    answers(module, torch.randn(1, 5, D))
    answers(module.unfreeze(), torch.randn(1, 5, D))
    assert seen == [vqvae_fast.PackedCodebook]


def in_place(module: ResidualVQ) -> None:
    with torch.no_grad():
        module.layers[1]._codebook.embed[0, 7] += 1


def other_tensor(module: ResidualVQ) -> None:
    module.layers[2]._codebook.embed = torch.randn(1, K, D)


def other_storage(module: ResidualVQ) -> None:
    module.layers[0]._codebook.embed.data = torch.randn(1, K, D)


def loaded(module: ResidualVQ) -> None:
    module.load_state_dict(quantizer().state_dict())


def assigned(module: ResidualVQ) -> None:
    module.load_state_dict(quantizer().state_dict(), assign=True)


def trained(module: ResidualVQ) -> None:
    module.train()
    assert module._kept_pack.nbytes == 0
    module(torch.randn(4, 20, D))
    module.eval()


def swapped(module: ResidualVQ) -> None:
    books = [module.layers[i]._codebook for i in (0, 1)]
    books[0].embed, books[1].embed = books[1].embed, books[0].embed


@pytest.mark.parametrize(
    "change", [in_place, other_tensor, other_storage, loaded, assigned, trained, swapped]
)
def test_it_packs_anew_after_a_change(packs: list, change: object) -> None:
    module, x = quantizer().freeze(), torch.randn(2, 13, D)
    before = answers(module, x)
    change(module)
    check(module, x)
    check(module, x)
    assert len(packs) == 2
    assert not torch.equal(answers(module, x)[0], before[0])


def test_memory_of_earlier_books_is_not_taken_for_theirs(packs: list) -> None:
    """The allocator gives freed memory to the next tensor of that size."""
    module, x = quantizer().freeze(), torch.randn(1, 13, D)
    for number in range(20):
        module.layers[0]._codebook.embed = torch.randn(1, K, D)
        check(module, x)
        assert len(packs) == number + 1


def test_a_tensor_of_the_same_storage_counts_its_own_writes(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(2, 13, D)
    book = module.layers[1]._codebook
    book.embed += 1
    check(module, x)
    written = book.embed._version
    book.embed = book.embed.data
    while book.embed._version < written:
        book.embed += 1
    check(module, x)
    assert len(packs) == 2


def test_moving_to_another_dtype_and_back(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(1, 13, D)
    wanted = answers(module, x)
    answers(module.double(), x.double())  # another route
    for mine, theirs in zip(answers(module.float(), x), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert len(packs) == 2


def test_verify_finds_what_torch_does_not_count() -> None:
    module, x = quantizer().freeze(verify=True), torch.randn(1, 13, D)
    answers(module, x)
    answers(module, x)
    module.layers[1]._codebook.embed.numpy()[0, 3] += 1
    with pytest.raises(RuntimeError, match=r"that torch does not count.*call freeze\(\) again"):
        answers(module, x)
    module.freeze()
    check(module, x)


def test_training_and_gradients_are_as_before(packs: list) -> None:
    module = quantizer(learnable_codebook=True, ema_update=False)
    frozen = copy.deepcopy(module).freeze()
    x = torch.randn(2, 13, D)
    for each in (module, frozen):
        each.train()
        quantized, _, loss = each(x.requires_grad_())
        (quantized.square().sum() + loss.sum()).backward()
    for mine, theirs in zip(frozen.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    quantized, *_ = frozen.eval()(x)  # with a gradient: no pack serves
    assert quantized.requires_grad == module.eval()(x)[0].requires_grad
    assert not packs


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_steps_in_eval(packs: list, fused: bool) -> None:
    """torch does not count what a fused optimizer writes."""
    module, x = quantizer(learnable_codebook=True, ema_update=False).freeze(), torch.randn(2, 13, D)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=fused)
    before = answers(module, x)
    quantized, _, losses = module(x)
    (quantized.square().sum() + losses.sum()).backward()
    optimizer.step()
    check(module, x)
    assert not torch.equal(answers(module, x)[0], before[0])
    assert len(packs) == 1  # another step may follow with these gradients
    optimizer.zero_grad()
    check(module, x)
    assert len(packs) == 2


def test_other_processes_may_write_to_the_books(packs: list, monkeypatch) -> None:
    """torch does not count what a collective writes, such as DistributedDataParallel's."""
    monkeypatch.setattr(kept_pack, "is_distributed", lambda: True)
    module, x = quantizer().freeze(), torch.randn(2, 13, D)
    check(module, x)
    assert not packs


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_follows_the_codes(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(2, 13, D)
    check(module, x)
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
        in_place(module)
        assert torch.equal(traced(x)[0], module.unfreeze()(x)[0])
    assert len(packs) == 1


def test_tensors_without_numbers(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(2, 13, D)
    check(module, x)
    quantized, indices, _ = module.to("meta")(x.to("meta"))
    assert (quantized.shape, indices.shape) == (x.shape, (2, 13, Q))
    assert module._kept_pack.nbytes == 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen_and_pack_for_themselves(packs: list, again: object) -> None:
    module, x = quantizer().freeze(), torch.randn(1, 13, D)
    wanted = answers(module, x)
    other = again(module)
    assert other._kept_pack.nbytes == 0
    in_place(module)
    for mine, theirs in zip(answers(other, x), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert len(packs) == 2


def test_the_state_dict_is_as_before() -> None:
    module = quantizer()
    names = list(module.state_dict())
    answers(module.freeze(), torch.randn(1, 3, D))
    assert list(module.state_dict()) == names


def test_inference_mode(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(1, 13, D)
    with torch.inference_mode():
        inside = module(x)
        module(x)
    assert len(packs) == 1
    assert torch.equal(inside[1], answers(module, x)[1])
    with torch.inference_mode():  # torch counts no changes of such codes
        module.layers[0]._codebook.embed = module.layers[0]._codebook.embed.clone()
        check(module, x)
    assert len(packs) == 1


@pytest.mark.slow
def test_compiled(packs: list) -> None:
    module, x = quantizer().freeze(), torch.randn(1, 13, D)
    wanted = answers(module, x)
    found = answers(torch.compile(module, fullgraph=True), x)
    assert torch.equal(found[1], wanted[1])
    assert len(packs) == 1


def test_every_quantizer_in_a_module() -> None:
    model = nn.Sequential(
        GroupedResidualVQ(dim=2 * D, groups=2, num_quantizers=Q, codebook_size=K), nn.Identity()
    )
    assert vqvae_fast.freeze(model) is model
    assert all(rvq._kept_pack is not None for rvq in model[0].rvqs)
    split = SplitResidualVQ(dim=D, codebook_dim=D, codebook_size=K, num_quantizers=Q).eval()
    x = torch.randn(2, D, 5)
    wanted = answers(split, x)
    found = answers(vqvae_fast.freeze(split), x)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert split.rvq_rest.vq._kept_pack.nbytes > 0


def test_a_module_without_one() -> None:
    with pytest.raises(ValueError, match="a quantizer of vqvae_fast in it, got Linear"):
        vqvae_fast.freeze(nn.Linear(D, D))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got list"):
        vqvae_fast.freeze([quantizer()])
