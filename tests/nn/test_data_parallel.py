"""VectorQuantizer under DDP and FSDP2: all processes learn one codebook."""

import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from process_group import run_together
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vqvae_fast.nn import VectorQuantizer

STEPS, BATCH, K, D = 5, 8, 24, 6
CASES = {
    "gradient": {},
    "gradient, expiry": {"dead_code_threshold": 0.5},
    "averages": {"learning": "ema", "decay": 0.8},
    "averages, expiry": {"learning": "ema", "decay": 0.5, "dead_code_threshold": 2.0},
    "k-means": {"learning": "ema", "kmeans_init": True, "kmeans_samples": 3 * BATCH * 6},
}
# Nothing is drawn at random: several processes give what one gives with the whole batch.
REPEATABLE = ["gradient", "averages"]
# What the processes tell each other is part of the graph.
COMPILED = ["averages, expiry", "gradient, expiry", "k-means"]


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


class Model(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.encoder = nn.Conv2d(3, D, 1)
        self.quantizer = VectorQuantizer(K, D, **options)

    def forward(self, x):
        loss, z_q, *_ = self.quantizer(self.encoder(x))
        return loss + z_q.square().mean()


def batches():
    return torch.randn(STEPS, BATCH, 3, 2, 3, generator=torch.Generator().manual_seed(3))


def trained(options, parts, wrap=lambda model: model):
    """The state after a step with each part."""
    torch.manual_seed(0)
    model = Model(options)
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # each process draws its own numbers
    wrapped = wrap(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for x in parts:
        optimizer.zero_grad()
        wrapped(x).backward()
        optimizer.step()
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
    }


def work(rank, folder):
    world = dist.get_world_size()
    states = {}
    for name, options in CASES.items():
        parts = list(batches().chunk(world, dim=1)[rank])
        states[name] = trained(options, parts, DistributedDataParallel)
        states[name, "fully_shard"] = trained(options, parts, fully_shard)
        if rank == 1:  # one process has nothing in one step, and less in another
            parts[1], parts[3] = parts[1][:0], parts[3][:1]
        states[name, "uneven"] = trained(options, parts, DistributedDataParallel)
    for name in COMPILED:
        parts = list(batches().chunk(world, dim=1)[rank])
        states[name, "eager"] = trained(CASES[name], parts)
        states[name, "compiled"] = trained(CASES[name], parts, compiled)
    torch.save(states, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module", params=[2, 4])
def states(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_together(work, request.param, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "case",
    [*CASES, *((case, kind) for kind in ("uneven", "fully_shard") for case in CASES)],
    ids=str,
)
def test_all_processes_have_the_same_bits(states, case):
    for state in states[1:]:
        for key, value in states[0][case].items():
            assert torch.equal(value, state[case][key]), key
            assert value.isfinite().all(), key


@pytest.mark.parametrize("case", REPEATABLE)
def test_they_are_those_of_one_process_with_the_whole_batch(states, case):
    for key, value in trained(CASES[case], batches()).items():
        for wrapped in (case, (case, "fully_shard")):
            torch.testing.assert_close(states[0][wrapped][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_steps_learn_the_same(states, case):
    for state in states:
        torch.testing.assert_close(state[case, "compiled"], state[case, "eager"])


def test_expiry_draws_from_all_and_k_means_takes_all(states):
    for case in ("averages, expiry", "k-means"):
        codes = states[0][case]["quantizer.embedding.weight"]
        assert codes.unique(dim=0).shape[0] == K
    assert bool(states[0]["k-means"]["quantizer.kmeans.initted"])


def end_early(rank, folder):
    def parts():
        for step, x in enumerate(batches().chunk(2, dim=1)[rank]):
            if rank == 1 and step == 1:
                os._exit(3)
            yield x

    trained(CASES["averages"], parts(), DistributedDataParallel)


@pytest.mark.slow
def test_a_lost_process_ends_the_others_with_an_error(tmp_path):
    begin = time.monotonic()
    with pytest.raises(mp.ProcessExitedException, match=r"exit code \d|signal"):
        run_together(end_early, 2, tmp_path)
    assert time.monotonic() - begin < 50
