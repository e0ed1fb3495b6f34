"""accelerate(): what it does to a model, and how it is undone, whatever the quantizer."""

import copy
import gc
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from vqvae_fast import accelerate, nearest_code, pack
from vqvae_fast.acceleration import Recipe, Search, kept, nearest, register
from vqvae_fast.acceleration.known import KNOWN

K, D = 40, 6


class Lookup(nn.Module):
    """A quantizer of another library; its codes are wrong, so that one sees which search ran."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(K, D))

    def find(self, x: Tensor) -> Tensor:
        return torch.full(x.shape[:-1], -1, device=x.device)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return codes that are scaled."""
        return self.find(x) * int(scale)


class OtherFind(Lookup):
    """A subclass with a search of its own."""

    def find(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-1], dtype=torch.int64)


class OtherForward(Lookup):
    """A subclass that changes nothing that a recipe replaces."""

    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        return self.find(x) * int(scale)


class Model(nn.Module):
    """Two quantizers, one of them used in two places."""

    def __init__(self):
        super().__init__()
        self.first = Lookup()
        self.inner = nn.Sequential(nn.Linear(D, D), Lookup())
        self.again = self.first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.inner(x)


def _find(original, module, x):
    return nearest(module, x, module.codes)


@pytest.fixture(autouse=True)
def recipe():
    before = list(KNOWN)
    recipe = Recipe(
        f"{__name__}.Lookup",
        {"find": _find},
        sizes=lambda module: f"K={len(module.codes)}",
        observed=("find", lambda module, indices, x: Search(x, module.codes, indices)),
    )
    register(recipe)
    yield recipe
    KNOWN[:] = before


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def x():
    return torch.randn(5, D, generator=torch.Generator().manual_seed(1))


def _is_exact(model, x):
    first, _ = model(x)
    return torch.equal(first, nearest_code(x, model.first.codes).indices)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_quantizers_search_exactly_until_it_is_undone(model, x, training):
    model.train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = accelerate(model, quiet=True)
    assert [place.name for place in done.accelerated] == ["first", "inner.1"]
    assert done.left == []
    assert _is_exact(model, x)
    assert torch.equal(model.first(x, scale=3.0), 3 * nearest_code(x, model.first.codes).indices)
    assert isinstance(model.first, Lookup)
    assert all(module.training == training for module in model.modules())
    assert list(model.state_dict()) == list(state)
    done.undo()
    assert type(model.first) is Lookup
    assert (model(x)[0] == -1).all()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    done.undo()  # a second time changes nothing
    assert type(model.first) is Lookup


def test_the_report_says_what_where_and_why(model, capsys):
    model.other = OtherFind()
    model.unknown = type("RandomQuantizer", (nn.Module,), {})()
    done = accelerate(model)
    assert str(done) in capsys.readouterr().out
    assert str(done).splitlines() == [
        "vqvae_fast accelerates 2 quantizers",
        "  first (Lookup): K=40",
        "  inner.1 (Lookup): K=40",
        "and leaves 2 modules alone",
        "  other (OtherFind): it has its own find",
        "  unknown (RandomQuantizer): there is no recipe for this class",
    ]
    accelerate(model, quiet=True)
    assert capsys.readouterr().out == ""


def test_a_model_without_quantizers_is_no_error():
    done = accelerate(nn.Linear(2, 2), quiet=True)
    assert str(done) == "vqvae_fast accelerates 0 quantizers"


def test_a_subclass_keeps_what_it_changes(x):
    model = OtherForward().eval()
    accelerate(model, quiet=True)
    with torch.no_grad():
        assert torch.equal(model(x), 2 * nearest_code(x, model.codes).indices)


def test_an_object_with_a_method_of_its_own_is_left(model):
    model.first.find = lambda x: x[..., 0].long()
    (left,) = accelerate(model, quiet=True).left
    assert (left.name, left.about) == ("first", "it has its own find")


def test_a_second_call_leaves_it_accelerated_and_can_undo_it(model, x):
    accelerate(model, quiet=True)
    cls = type(model.first)
    again = accelerate(model, quiet=True)
    assert type(model.first) is cls
    assert len(again.accelerated) == 2
    again.undo()
    assert type(model.first) is Lookup


def test_eval_packs_once_and_again_after_a_change(model, x, monkeypatch):
    packs = []
    monkeypatch.setattr(
        "vqvae_fast.nn.codebook.kept_pack.pack",
        lambda books: packs.append(books) or pack(books),
    )
    accelerate(model, quiet=True)
    with torch.no_grad():
        for _ in range(3):
            assert _is_exact(model, x)
        assert len(packs) == 2  # one for each quantizer
        model.first.codes.mul_(-1)
        assert _is_exact(model, x)
        model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
        assert _is_exact(model, x)
        model.double()
        assert _is_exact(model, x.double())
        model.train()
        assert _is_exact(model.float(), x)
        model.first.codes.data.mul_(-1)  # training steps of other libraries write like this
        model(x)
        model.eval()
        assert _is_exact(model, x)


def test_undo_frees_the_packed_books(model, x):
    done = accelerate(model, quiet=True)
    with torch.no_grad():
        model(x)
    assert model.first in kept._packs
    done.undo()
    assert model.first not in kept._packs


def test_a_model_that_is_deleted_is_freed(x):
    model = Model().eval()
    done = accelerate(model, quiet=True)
    with torch.no_grad():
        model(x)
    alive = weakref.ref(model.first)
    del model, done
    gc.collect()
    assert alive() is None


@torch.no_grad()
def test_a_deep_copy_is_accelerated_and_independent(model, x):
    done = accelerate(model, quiet=True)
    model(x)
    copied = copy.deepcopy(model)
    assert copied.again is copied.first
    copied.first.codes.mul_(-1)
    assert _is_exact(copied, x)
    assert _is_exact(model, x)
    done.undo()
    assert _is_exact(copied, x)
    accelerate(copied, quiet=True).undo()
    assert type(copied.first) is Lookup


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
@torch.no_grad()
def test_files_hold_the_model_of_the_other_library(model, x, way):
    accelerate(model, quiet=True)
    model(x)
    file = io.BytesIO()
    pickle.dump(model, file) if way == "pickle" else torch.save(model, file)
    assert b"vqvae_fast" not in file.getvalue()
    file.seek(0)
    read = pickle.load(file) if way == "pickle" else torch.load(file, weights_only=False)
    assert type(read.first) is Lookup
    assert read.again is read.first
    assert torch.equal(read.first.codes, model.first.codes)


def test_hooks_run_as_before(model, x):
    seen = []
    model.first.register_forward_hook(lambda module, given, result: seen.append(result))
    accelerate(model, quiet=True)
    model.first.register_forward_pre_hook(lambda module, given: seen.append(given))
    model(x)
    assert len(seen) == 2


@torch.no_grad()
def test_a_replica_of_data_parallel_uses_its_own_tensors(model, x):
    accelerate(model, quiet=True)
    replica = model.first._replicate_for_data_parallel()
    replica.codes = -model.first.codes
    assert torch.equal(replica(x), nearest_code(x, replica.codes).indices)


@torch.no_grad()
def test_threads_may_search_at_once(model):
    accelerate(model, quiet=True)
    xs = [torch.randn(7, D) for _ in range(16)]
    barrier = threading.Barrier(4)

    def search(x):
        barrier.wait()
        return _is_exact(model, x)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(search, xs))


@torch.no_grad()
def test_it_compiles_in_one_graph(model, x):
    accelerate(model, quiet=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)[0], nearest_code(x, model.first.codes).indices)
    model.first.codes.mul_(-1)
    assert torch.equal(compiled(x)[0], nearest_code(x, model.first.codes).indices)


@torch.no_grad()
def test_it_can_be_exported(model, x):
    accelerate(model, quiet=True)
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x)[0], nearest_code(x, model.first.codes).indices)


@torch.no_grad()
def test_a_class_is_accelerated_with_all_its_instances(x):
    before = Lookup().eval()
    done = accelerate(Lookup, quiet=True)
    try:
        after = Lookup().eval()
        for module in (before, after):
            assert torch.equal(module(x), nearest_code(x, module.codes).indices)
        assert (OtherFind()(x) == 0).all()
        # A model of the class is found to be accelerated; undoing that leaves the class alone.
        accelerate(before, quiet=True).undo()
        assert torch.equal(before(x), nearest_code(x, before.codes).indices)
    finally:
        done.undo()
    assert (before(x) == -1).all()
    assert (after(x) == -1).all()


@torch.no_grad()
def test_modules_and_their_class_are_undone_by_themselves(x):
    module = Lookup().eval()
    alone = accelerate(module, quiet=True)
    everywhere = accelerate(Lookup, quiet=True)
    everywhere.undo()
    assert (module(x) >= 0).all()
    assert (Lookup()(x) == -1).all()
    alone.undo()
    assert (module(x) == -1).all()


def test_a_class_inherits_again_what_it_inherited(recipe):
    class Heir(Lookup):
        pass

    register(Recipe(f"{__name__}.{Heir.__qualname__}", recipe.methods))
    before = dict(vars(Heir))
    accelerate(Heir, quiet=True).undo()
    assert dict(vars(Heir)) == before
    own = dict(vars(Lookup))
    accelerate(Lookup, quiet=True).undo()
    assert dict(vars(Lookup)) == own


class CopiesItself(Lookup):
    """A quantizer with a way of its own to be copied."""

    def __deepcopy__(self, memo):
        copied = CopiesItself()
        copied.load_state_dict(self.state_dict())
        copied.is_a_copy = True
        return copied


@torch.no_grad()
def test_a_class_copies_itself_in_its_own_way(x):
    module = CopiesItself().eval()
    done = accelerate(module, quiet=True)
    copied = copy.deepcopy(module)
    assert copied.is_a_copy
    assert torch.equal(copied(x), nearest_code(x, module.codes).indices)
    assert torch.equal(copy.deepcopy(copied)(x), copied(x))
    done.undo()
    assert (copy.deepcopy(module)(x) == -1).all()


@torch.no_grad()
def test_a_name_accelerates_the_classes_below_it(x):
    done = accelerate(__name__, quiet=True)
    assert [place.name for place in done.accelerated] == [f"{__name__}.Lookup"]
    module = Lookup().eval()
    assert torch.equal(module(x), nearest_code(x, module.codes).indices)
    done.undo()
    assert (module(x) == -1).all()


def test_what_cannot_be_accelerated_is_named():
    with pytest.raises(
        ValueError, match=r"no class with a recipe is named 'torch' or stands below"
    ):
        accelerate("torch")
    with pytest.raises(ValueError, match=r"there is no recipe for the class torch\.nn.*Linear"):
        accelerate(nn.Linear)
    with pytest.raises(
        TypeError, match=r"must be a torch\.nn\.Module, a class of modules or the name"
    ):
        accelerate(3)


def test_names_of_a_library_that_is_not_installed(recipe):
    register(Recipe("no_such_library.Quantizer", {"find": _find}))
    with pytest.raises(ValueError, match=r"recipes know no_such_library.Quantizer, which are not"):
        accelerate("no_such_library")


def test_another_class_that_was_given_since_cannot_be_undone(model):
    done = accelerate(model, quiet=True)
    model.first.__class__ = type("Wrapped", (type(model.first),), {})
    with pytest.raises(RuntimeError, match="a Wrapped cannot be given its own methods back"):
        done.undo()
    assert type(model.inner[1]) is Lookup


def test_a_recipe_for_a_shape_needs_an_example():
    with pytest.raises(ValueError, match="a recipe for modules of a shape needs an example"):
        Recipe(lambda module: True, {"find": _find})


def test_a_recipe_may_refuse_a_module(recipe):
    register(
        Recipe(recipe.known, recipe.methods, refusal=lambda module: "it is too small for this")
    )
    (left,) = accelerate(Lookup(), quiet=True).left
    assert left.about == "it is too small for this"


def test_a_class_without_a_method_that_is_replaced_is_left(recipe):
    register(Recipe(recipe.known, {**recipe.methods, "look_up": _find}))
    (left,) = accelerate(Lookup(), quiet=True).left
    assert left.about == "it has no look_up"
