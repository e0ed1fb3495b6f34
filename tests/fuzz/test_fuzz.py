"""Each fuzzer for a while from a fixed seed, and with planted faults that it must find.

VQVAE_FAST_FUZZ_SECONDS: for each fuzzer. VQVAE_FAST_FUZZ_SEED: another first seed.
"""

import os
import random

import campaign
import exactness
import pytest
import torch

import vqvae_fast
from vqvae_fast.functional import NearestCode

SECONDS = float(os.environ.get("VQVAE_FAST_FUZZ_SECONDS", "30"))
# The same cases in every run, whatever the machine's speed, unless a time is asked for.
CASES = None if "VQVAE_FAST_FUZZ_SECONDS" in os.environ else 1200
SEED = int(os.environ.get("VQVAE_FAST_FUZZ_SEED", "20250101"))


def peer_fuzzer():
    pytest.importorskip("vector_quantize_pytorch")
    import against_the_peer

    return against_the_peer.FUZZER


FUZZERS = {"exactness": lambda: exactness.FUZZER, "against the peer": peer_fuzzer}


@pytest.mark.slow
@pytest.mark.filterwarnings("default:Using a target size:UserWarning")  # of the peer's, its losses
@pytest.mark.parametrize("name", FUZZERS)
def test_nothing_is_found(name):
    print(f"first seed: {SEED}")
    result = campaign.run(FUZZERS[name](), SEED, seconds=SECONDS, cases=CASES, keep_going=True)
    print(result)
    assert result.outcomes.total() > 3
    assert not result.findings, "\n".join(map(str, result.findings))


def second_nearest(z, codebook, **options):
    """The search, but for the last row: it gets the second nearest code, honestly measured."""
    indices, distances = NEAREST_CODE(z, codebook, **options)
    row, book = z.reshape(-1, z.shape[-1])[-1], codebook.reshape(-1, *codebook.shape[-2:])[-1]
    measured = (row.double() - book.double()).square().sum(dim=1)
    if len(book) > 1:
        second = measured.argsort(stable=True)[1]
        indices.view(-1)[-1] = second
        distances.view(-1)[-1] = measured[second]
    return NearestCode(indices, distances)


NEAREST_CODE = vqvae_fast.nearest_code


def test_a_wrong_code_is_found(monkeypatch):
    monkeypatch.setattr(vqvae_fast, "nearest_code", second_nearest)
    result = campaign.run(exactness.FUZZER, SEED, cases=40)
    assert "not the nearest code" in str(result.findings[0].error)
    monkeypatch.undo()
    again = campaign.run(exactness.FUZZER, result.findings[0].seed, cases=1)
    assert not again.findings


def test_bits_that_depend_on_the_thread_count_are_found(monkeypatch):
    def distances_by_threads(z, codebook, **options):
        indices, distances = NEAREST_CODE(z, codebook, **options)
        return NearestCode(indices, distances * (1 + 1e-7 * (torch.get_num_threads() > 2)))

    monkeypatch.setattr(vqvae_fast, "nearest_code", distances_by_threads)
    assert campaign.run(exactness.FUZZER, SEED, cases=40).findings


def wrong_loss(module, result):
    if len(result) < 3:  # a cross-entropy
        return result
    quantized, indices, loss, *more = result
    return (quantized, indices, loss * 1.001, *more)


def codes_too_long(module, result):
    if module.training:
        module._codebook.cluster_size.mul_(1.001)
    return result


@pytest.mark.parametrize("fault", [wrong_loss, codes_too_long])
@pytest.mark.filterwarnings("default:Using a target size:UserWarning")
def test_a_fault_of_a_drop_in_is_found(monkeypatch, fault):
    right = vqvae_fast.VectorQuantize.forward

    def forward(self, *arguments, **options):
        return fault(self, right(self, *arguments, **options))

    fuzzer = peer_fuzzer()
    monkeypatch.setattr(vqvae_fast.VectorQuantize, "forward", forward)
    result = campaign.run(fuzzer, SEED, cases=60)
    assert "differs" in str(result.findings[0].error)


def test_a_case_is_repeated_by_its_seed():
    for fuzzer in (exactness.FUZZER, peer_fuzzer()):
        assert str(fuzzer.draw(random.Random(7))) == str(fuzzer.draw(random.Random(7)))
        assert str(fuzzer.draw(random.Random(7))) != str(fuzzer.draw(random.Random(8)))
