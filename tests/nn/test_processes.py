"""Several processes, each with a part of the batch, learn what one learns from all of it."""

import pytest
import torch
from process_group import run_together

from vqvae_fast.nn import ResidualVQ, VectorQuantize

WORLD = 2
BASE = {"dim": 8, "codebook_size": 16}
STEPS = 3


def batches():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(STEPS, WORLD, 2, 12, 8, generator=generator)


def learn(make, x, masked=None):
    """x: [STEPS, B, N, D] -> the state after all steps; in one of them no vector may count."""
    torch.manual_seed(0)
    module = make()
    for step, batch in enumerate(x):
        torch.manual_seed(step)
        given = {} if masked is None else {"mask": torch.full(batch.shape[:2], step != masked)}
        module(batch, **given)
    return module.state_dict()


def quantizer(options):
    return lambda: VectorQuantize(**BASE, **options)


def residual(options):
    return lambda: ResidualVQ(**BASE, num_quantizers=3, **options)


CASES = {
    "averages": quantizer({}),
    "cosine": quantizer({"use_cosine_sim": True}),
    "affine": quantizer({"affine_param": True, "sync_affine_param": True}),
    "expiry": quantizer({"threshold_ema_dead_code": 2}),
    "k-means": quantizer({"kmeans_init": True, "threshold_ema_dead_code": 2}),
    "residual": residual({}),
    "dropout": residual({"quantize_dropout": True}),
}


def work(rank, folder):
    x = batches()[:, rank]
    states = {name: learn(make, x) for name, make in CASES.items()}
    uneven = list(x)
    if rank == 1:  # one process has nothing in one step, and less in another
        uneven[1], uneven[2] = x[1][:0], x[2][:1]
    states |= {(name, "uneven"): learn(make, uneven) for name, make in CASES.items()}
    masked = 1 if rank == 1 else -1
    states |= {(name, "masked"): learn(make, x, masked) for name, make in CASES.items()}
    torch.save(states, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_together(work, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    "case",
    [*CASES, *((case, kind) for kind in ("uneven", "masked") for case in CASES)],
    ids=str,
)
def test_all_processes_have_the_same_codes(states, case):
    for key, value in states[0][case].items():
        assert torch.equal(value, states[1][case][key]), key


@pytest.mark.parametrize("case", ["averages", "cosine", "affine", "residual"])
def test_they_are_those_of_one_process_with_the_whole_batch(states, case):
    alone = learn(CASES[case], batches().flatten(1, 2))
    for key, value in alone.items():
        torch.testing.assert_close(states[0][case][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["expiry", "k-means"])
def test_codes_are_drawn_from_the_vectors_of_all_processes(states, case):
    codes = states[0][case]["_codebook.embed"]
    assert codes.isfinite().all()
    assert codes[0].unique(dim=0).shape[0] == 16
    vectors = batches()[-1].flatten(1, 2)  # of the last step, by process
    nearest = [torch.cdist(codes[0], part).amin(dim=1) < 1e-6 for part in vectors]
    if case == "expiry":
        assert all(part.any() for part in nearest)
