"""Processes whose quantizers differ: each raises, and says in what; nothing hangs or aborts."""

import re

import pytest
import torch
from process_group import run_together
from torch.distributed.device_mesh import init_device_mesh

from vqvae_fast import agreement
from vqvae_fast.nn import (
    GroupedResidualVQ,
    ResidualSimVQ,
    ResidualVQ,
    VectorQuantize,
    VectorQuantizer,
)
from vqvae_fast.sharded import ShardedVectorQuantizer

pytestmark = pytest.mark.slow  # four processes and their compilers; test_processes.py is quick

WORLD = 4
D = 8


def feature_map(dtype=torch.float32):
    return torch.randn(2, D, 2, 2, dtype=dtype)


def rows(dtype=torch.float32):
    return torch.randn(2, 6, D, dtype=dtype)


def quantizer(**options):
    VectorQuantizer(**{"n_e": 16, "e_dim": D, "learning": "ema"} | options)(feature_map())


def drop_in(make=VectorQuantize, **options):
    make(**{"dim": D, "codebook_size": 16} | options)(rows())


def residual(**options):
    drop_in(ResidualVQ, **{"num_quantizers": 3} | options)


def sharded(shape, **options):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "codes")[-len(shape) :])
    ShardedVectorQuantizer(**{"n_e": 32, "e_dim": D, "mesh": mesh} | options)(feature_map())


def in_place(rate):
    learns = {"learnable_codebook": True, "ema_update": False, "decay": 0.8 + rate}
    drop_in(**learns, in_place_codebook_optimizer=lambda p: torch.optim.SGD(p, lr=rate))


def compiled(**options):
    torch._dynamo.reset()
    module = VectorQuantize(**{"dim": D, "codebook_size": 16} | options)
    torch.compile(module, fullgraph=True, backend="aot_eager")(rows())


def started(rank):
    """One process has loaded codes, the others are about to find theirs."""
    module = VectorQuantize(dim=D, codebook_size=16, kmeans_init=True)
    if rank == 3:
        module.codebook = torch.randn(16, D)
    module(rows())


# What each process does, and what differs in the last one.
CASES = {
    "K": (
        lambda odd: quantizer(n_e=16 + odd),
        "n_e is 16 in processes 0, 1, 2 and 17 in process 3",
    ),
    "decay": (lambda odd: quantizer(decay=0.9 if odd else 0.8), "decay is 0.8 .* and 0.9"),
    "learning": (
        lambda odd: quantizer(
            dead_code_threshold=0.1, learning="gradient" if odd else "ema", beta=0.2 + odd
        ),
        "beta is 0.2 .* and 1.2 in process 3; learning is 'ema' .* and 'gradient'",
    ),
    "k-means": (
        lambda odd: quantizer(kmeans_init=True, kmeans_samples=64 + odd),
        "kmeans_samples is 64 .* and 65",
    ),
    "dtype": (
        lambda odd: VectorQuantizer(16, D, learning="ema")(
            feature_map(torch.float64 if odd else torch.float32)
        ),
        "dtype of vectors is 'torch.float32' .* and 'torch.float64'",
    ),
    "drop-in K": (lambda odd: drop_in(codebook_size=16 + odd), "codebook_size is 16 .* and 17"),
    "drop-in d": (lambda odd: drop_in(codebook_dim=4 + odd), "codebook_dim is 4 .* and 5"),
    "drop-in expiry": (
        lambda odd: drop_in(threshold_ema_dead_code=1 + odd),
        "threshold_ema_dead_code is 1 .* and 2",
    ),
    "drop-in k-means": (
        lambda odd: drop_in(kmeans_init=True, codebook_size=16 + odd),
        "codebook_size is 16 .* and 17",
    ),
    "compiled": (lambda odd: compiled(codebook_size=16 + odd), "codebook_size is 16 .* and 17"),
    "affine": (
        lambda odd: drop_in(
            affine_param=True, sync_affine_param=True, sync_codebook=False, codebook_dim=4 + odd
        ),
        "codebook_dim is 4 .* and 5",
    ),
    "in place": (lambda odd: in_place(0.1 * odd), "decay is 0.8 .* and 0.9"),
    "started": (lambda odd: started(3 * odd), "initted is False .* and True in process 3"),
    "stages": (lambda odd: residual(num_quantizers=3 - odd), "num_quantizers is 3 .* and 2"),
    "dropout": (
        lambda odd: residual(
            quantize_dropout=True, quantize_dropout_cutoff_index=odd, sync_codebook=False
        ),
        "quantize_dropout_cutoff_index is 0 .* and 1",
    ),
    "groups": (
        lambda odd: drop_in(GroupedResidualVQ, groups=2 + 2 * odd, num_quantizers=2),
        "GroupedResidualVQ must be the same .* groups is 2 .* and 4",
    ),
    "SimVQ": (
        lambda odd: drop_in(ResidualSimVQ, num_quantizers=2 + odd, quantize_dropout=True),
        "num_quantizers is 2 .* and 3",
    ),
    "sharded K": (lambda odd: sharded((4,), n_e=32 - 27 * odd), "n_e is 32 .* and 5 in process 3"),
    "sharded D": (lambda odd: sharded((2, 2), e_dim=D + odd), "e_dim is 8 .* and 9 in process 3"),
    "sharded decay": (
        lambda odd: sharded((2, 2), learning="ema", decay=0.5 + 0.25 * odd),
        "decay is 0.5 .* and 0.75 in process 3",
    ),
}


def message_of(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    except torch._dynamo.exc.InternalTorchDynamoError as error:  # of "compiled" alone
        return str(error).splitlines()[0]
    return "it ran"


def sharded_dtype(odd):
    mesh = init_device_mesh("cpu", (4,))
    module = ShardedVectorQuantizer(32, D, mesh=mesh)
    module.encode(feature_map(torch.bfloat16 if odd else torch.float32))


CASES["sharded dtype"] = (sharded_dtype, "dtype of vectors is 'torch.float32' .* and 'torch.bfl")

ALIKE = {
    "quantizer": lambda: VectorQuantizer(16, D, learning="ema"),
    "drop-in": lambda: VectorQuantize(dim=D, codebook_size=16, channel_last=False),
    "residual": lambda: ResidualVQ(
        dim=D,
        codebook_size=16,
        num_quantizers=2,
        channel_last=False,
        quantize_dropout=True,
        quantize_dropout_cutoff_index=1,  # both stages take part in the first step
    ),
}


def compared(make, compile_):
    """How often the processes compare arguments in each of three steps."""
    torch._dynamo.reset()
    module, counts = make(), []
    step = torch.compile(module, fullgraph=True, backend="aot_eager") if compile_ else module
    for _ in range(3):
        before = len(texts)
        step(feature_map())
        counts.append(len(texts) - before)
    return counts


texts = []


def work(rank, folder):
    odd = int(rank == WORLD - 1)
    found = {name: message_of(call, odd) for name, (call, _) in CASES.items()}
    gather = agreement.texts_of_all

    def counted(*arguments):
        texts.append(arguments)
        return gather(*arguments)

    agreement.texts_of_all = counted
    owner, device = torch.nn.Identity(), torch.device("cpu")
    read = []
    for _ in range(2):
        agreement.require_same(owner, "it", lambda: {"read": read.append(1)}, device)
    assert read == [1]  # reading them may wait for the device
    for name, make in ALIKE.items():
        for compile_ in (False, True):
            found[name, compile_] = compared(make, compile_)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_together(work, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_all_processes_say_what_differs(found, case):
    messages = {messages[case] for messages in found}
    assert len(messages) == 1, messages
    (message,) = messages
    assert " must be the same in all processes, but " in message
    assert re.search(CASES[case][1], message), message


@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize("case", ALIKE)
def test_arguments_are_compared_in_the_first_step_alone(found, case, compile_):
    for counts in found:
        first, *later = counts[case, compile_]
        assert first == (3 if case == "residual" else 1)  # the stages', and their number
        assert later == [0, 0]
