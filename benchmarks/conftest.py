"""The suites share the option --full and the contest that every test runs."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    # pytest turns warnings into errors; a package without its kernels is slow, not an error.
    warnings.simplefilter("default")
    import vqvae_fast  # noqa: F401

from benchmarks.cases import Case
from vqvae_fast.bench import environment, memory
from vqvae_fast.bench.peak import try_meter
from vqvae_fast.bench.threads import all_threads

# Calls that take longer are left to ``python -m benchmarks``.
_LONGEST_SECONDS = 2.0
_TIMED_SECONDS = 0.2
_ROUNDS = (5, 100)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="large shapes and the sweep, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: a large shape or one of the sweep, run with --full")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="session")
def machine():
    """The data that all records share; all contenders get the same number of threads."""
    threads = torch.get_num_threads()
    with all_threads(threads):
        yield {
            "device": "cpu",
            "cpu": environment.cpu_model(),
            "threads": threads,
            "versions": environment.versions(),
        }


@pytest.fixture(scope="session")
def meter(machine):
    """The meter of the machine's peak, or None and the reason."""
    return try_meter(machine["threads"])


@pytest.fixture
def contest(benchmark, machine, meter):
    """Check a peer's answer, measure its memory, time it, and leave a complete record."""
    meter, why_no_peak = meter

    def compete(
        peer: Any,
        case: Case,
        build: Callable[[], Callable[[], Any]],
        check: Callable[[Any], float],
        *,
        flops: float | None = None,
        matrices: int = 0,
    ) -> None:
        """Run one contest. Ours must be right; a peer that is missing or too large is skipped.

        Args:
            peer: a peer of any kind; ours are those whose names begin with "ours".
            case: the case that it runs on.
            build: returns the call to time; building is not timed.
            check: maps the call's first result to the share of it that is wrong.
            flops: the operations of a call, if they are not those of the case's scores.
            matrices: how many matrices [N, K] the peer holds at its peak.
        """
        ours = peer.name.startswith("ours")
        flops = case.flops if flops is None else flops
        reason = (
            peer.unavailable()
            or case.unavailable()
            or memory.too_large(matrices, case.shape)
            or (_too_slow(flops / meter.median()) if meter and not ours else None)
        )
        if reason:
            pytest.skip(reason)
        call = build()
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        if reason := _too_slow(seconds):
            pytest.skip(reason)
        wrong = check(result)
        assert not (ours and wrong), f"{wrong:.2%} of {peer.name}'s answer is wrong"
        del result
        peak_memory = memory.peak_of(lambda: (call(),))
        benchmark.group = f"{case.name}, {case.source}"
        sampled = len(meter.flops) if meter else 0
        if meter:  # on both sides of the timing: shared machines drift
            meter.sample()
        few, many = _ROUNDS
        rounds = min(max(few, int(_TIMED_SECONDS / seconds)), many)
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1)
        if meter:
            meter.sample()
        reached = flops / benchmark.stats.stats.median
        peak = meter.median(sampled) if meter else None
        benchmark.extra_info.update(
            machine,
            isa=environment.isa() if ours else None,
            shape=case.shape._asdict(),
            stages=case.stages,
            data=case.source,
            timed=peer.timed,
            wrong=wrong,
            gflops=reached / 1e9,
            peak_gflops=peak / 1e9 if peak else why_no_peak,
            share_of_peak=reached / peak if peak else None,
            peak_memory=peak_memory.total if peak_memory else None,
        )

    return compete


def _too_slow(seconds: float) -> str | None:
    if seconds <= _LONGEST_SECONDS:
        return None
    return f"a call takes {seconds:.1f} s or more, over {_LONGEST_SECONDS:.0f} s"
