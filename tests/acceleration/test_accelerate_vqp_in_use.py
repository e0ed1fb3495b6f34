"""accelerate() on vector-quantize-pytorch: packed books, hooks, copies, compilers, processes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from process_group import run_together
from torch import nn
from torch.utils.checkpoint import checkpoint
from vqp_pairs import DIM, SIZE, accelerated, assert_same, assert_same_steps, make, outcome

from vqvae_fast import accelerate

_TOKENS = (4, 12, DIM)


def _in_eval(module, x):
    with torch.no_grad():
        return outcome(module.eval(), x)


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ"])
def test_a_write_to_the_codes_is_seen_in_eval(kind):
    """Also one that torch does not count, in the methods of the library that make them."""
    theirs = make(kind, threshold_ema_dead_code=2)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)

    def codebook(module):
        return next(part for part in module.modules() if hasattr(part, "update_ema"))

    def average(module):
        codebook(module).embed_avg.mul_(-2)
        codebook(module).update_ema()

    def learn(module):
        codes = torch.arange(len(x)).expand(1, -1)
        codebook(module).update_indices(-2 * x[:, 0][None], codes)

    def write(module):
        codebook(module).embed.mul_(-1)

    def start(module):
        codebook(module).initted.fill_(False)  # k-means starts the codes in the next call

    def train_one_stage(module):
        stage = module.layers[0] if kind == "ResidualVQ" else module
        stage.train()
        torch.manual_seed(2)
        stage(-x)
        stage.eval()

    for change in (average, learn, write, start, train_one_stage):
        assert_same(_in_eval(ours, x), _in_eval(theirs, x))
        for module in (theirs, ours):
            change(module)
        assert_same(_in_eval(ours, x), _in_eval(theirs, x))


def test_the_map_of_simvq_may_be_exchanged_and_watched():
    theirs = make("SimVQ", codebook_transform=nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()))
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    assert_same(_in_eval(ours, x), _in_eval(theirs, x))
    for module in (theirs, ours):
        module.code_transform[1] = nn.Tanh().eval()
    assert_same(_in_eval(ours, x), _in_eval(theirs, x))
    calls = []
    ours.code_transform.register_forward_hook(lambda *args: calls.append(args))
    _in_eval(ours, x)
    _in_eval(ours, x)
    assert len(calls) == 2


def test_hooks_see_what_the_library_gives():
    theirs = make("ResidualVQ")
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    sides = [], []
    for module, seen in zip((theirs, ours), sides, strict=True):
        for part in (module.layers[1], module.layers[2]._codebook):
            part.register_forward_hook(lambda part, given, result, seen=seen: seen.extend(result))
    for training in (False, True):
        assert_same_steps(theirs, ours, [x], training=training)
    assert len(sides[1]) == 12
    assert_same(sides[1], sides[0])


def test_a_codebook_that_is_called_by_itself_gives_distances():
    theirs = make("VectorQuantize")
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    for training in (False, True):
        for module in (theirs, ours):
            module.train(training)
        assert_same([*ours._codebook(x)], [*theirs._codebook(x)])
    assert ours._codebook(x)[2].shape == (1, *_TOKENS[:2], SIZE)


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ", "SimVQ"])
def test_copies_and_pickles(kind):
    theirs = make(kind)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    _in_eval(ours, x)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same_steps(copy.deepcopy(theirs), other, [x, x])
    replica = ours._replicate_for_data_parallel()  # shares the dicts of tensors, as DataParallel's
    replica._parameters, replica._buffers = dict(ours._parameters), dict(ours._buffers)
    replica._modules = dict(ours._modules)
    with torch.no_grad():
        assert_same([*replica.eval()(x)], [*theirs.eval()(x)])


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ"])
def test_compiled_models_call_them_between_graphs(kind):
    theirs = make(kind)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    compiled = torch.compile(nn.Sequential(nn.Identity(), ours), backend="eager")
    for training in (True, False):
        theirs.train(training)
        compiled.train(training)
        for _ in range(2):
            assert_same([*compiled(x)], [*theirs(x)])
    assert_same([*ours.state_dict().values()], [*theirs.state_dict().values()])


def test_simvq_compiles_as_a_whole():
    theirs = make("SimVQ")
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    x[0, 0] = 0
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        theirs.train(training)
        compiled.train(training)
        assert_same([*compiled(x)], [*theirs(x)])


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ", "SimVQ"])
def test_autocast_leaves_types_as_they_are(kind):
    theirs = make(kind)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    for training in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, found = (
                module.train(training)(x.clone().requires_grad_()) for module in (theirs, ours)
            )
        for got, right in zip(found, expected, strict=True):
            assert got.dtype == right.dtype
            assert got.shape == right.shape


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", {}),
        # Where codes become residuals, the second run finds vectors without length.
        ("ResidualVQ", {"threshold_ema_dead_code": 2, "rotation_trick": False}),
        # The second run finds short codes.
        ("VectorQuantize", {"use_cosine_sim": True}),
    ],
)
def test_a_checkpointed_step_runs_twice_as_the_librarys_does(kind, options):
    theirs = make(kind, **options)
    if "use_cosine_sim" in options:
        theirs._codebook.embed_avg.mul_(1e-13)
    ours = accelerated(theirs)
    x = torch.randn(_TOKENS)
    sides = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        torch.manual_seed(4)
        quantized, _, loss = checkpoint(module.train(), given, use_reentrant=False)
        (quantized.square().sum() + loss.sum()).backward()
        sides.append([quantized, loss, given.grad, *module.state_dict().values()])
    assert_same(sides[1], sides[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", {"learnable_codebook": True, "ema_update": False}),
        ("SimVQ", {"rotation_trick": False}),
    ],
)
def test_codes_get_no_gradient_where_the_loss_is_not_used(kind, options):
    """An optimizer with weight decay would move them."""
    ours = accelerated(make(kind, **options))
    ours(torch.randn(_TOKENS, requires_grad=True))[0].sum().backward()
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_threads_share_a_quantizer_in_eval():
    theirs = make("ResidualVQ")
    ours = accelerated(theirs).eval()
    inputs = torch.randn(8, *_TOKENS)
    with torch.no_grad():
        expected = [theirs.eval()(x) for x in inputs]

    def call(x):
        with torch.no_grad():
            return ours(x)

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(call, inputs), expected, strict=True):
            assert_same([*found], [*right])


_SYNCED = {
    "averages": {},
    "cosine": {"use_cosine_sim": True},
    "k-means": {"kmeans_init": True, "kmeans_iters": 2},
    "expiry": {"threshold_ema_dead_code": 2},
    "affine": {"affine_param": True, "sync_affine_param": True},
}


def _learn_together(rank, folder):
    x = torch.randn(3, 2, *_TOKENS, generator=torch.Generator().manual_seed(3))[:, rank]
    states = {}
    for name, options in _SYNCED.items():
        for accelerates in (False, True):
            torch.manual_seed(0)
            module = make("VectorQuantize", sync_codebook=True, **options)
            if accelerates:
                accelerate(module, quiet=True)
            for step, batch in enumerate(x):
                torch.manual_seed(step)
                module(batch)
            states[name, accelerates] = module.state_dict()
    torch.save(states, f"{folder}/{rank}.pt")


def test_processes_learn_together_what_they_did(tmp_path):
    run_together(_learn_together, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in _SYNCED:
        for one in (first, second):
            assert_same([*one[name, True].values()], [*one[name, False].values()])
        assert_same([*first[name, True].values()], [*second[name, True].values()])
