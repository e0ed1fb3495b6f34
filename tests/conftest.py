"""What all tests share."""

import collections
import os
import warnings
from collections.abc import Iterator

import pytest
import torch
from fresh_python import FreshPython

with warnings.catch_warnings():
    # Without its kernels the package warns once, at import, and works: no error here.
    warnings.simplefilter("default")
    from vqvae_fast import _native, settings


@pytest.fixture(scope="session")
def fresh_python() -> Iterator[FreshPython]:
    with FreshPython() as python:
        yield python


def pytest_report_header():
    if settings.current.triton_interprets:
        kernels = "Triton kernels in Triton's interpreter"
    elif _native.extension is None:
        kernels = f"reference kernels only ({_native.reason})"
    else:
        kernels = f"C++ kernels, {', '.join(_native.extension.available_cpu_isas())}"
    lines = [f"vqvae_fast: {kernels}"]
    if not torch.cuda.is_available():
        lines.append("vqvae_fast: no CUDA device, so the tests of tests/gpu are not collected")
    return lines


def pytest_sessionstart(session):
    required = (
        os.environ.get("VQVAE_FAST_REQUIRE_EXT") == "1" and not settings.current.triton_interprets
    )
    if required and _native.extension is None:
        pytest.exit(f"the C++ extension is required, but {_native.reason}", returncode=1)
    if os.environ.get("VQVAE_FAST_REQUIRE_CUDA") == "1" and not torch.cuda.is_available():
        pytest.exit("a CUDA device is required, but torch finds none", returncode=1)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark cases of a test slow, except as many as its marker quick says: the middles of n parts.

    Triton's interpreter takes its time: there one case of a test is quick, unless the marker says
    how many are. Cases that are marked slow do not count.
    """
    tests = collections.defaultdict(list)
    for case in items:
        if case.get_closest_marker("slow") is None:
            tests[case.parent.nodeid, case.originalname].append(case)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("quick")
        if settings.current.triton_interprets:
            number = marker.kwargs.get("interpreted", 1) if marker else 1
        else:
            number = marker.args[0] if marker and marker.args else len(cases)
        quick = {(2 * part + 1) * len(cases) // (2 * number) for part in range(number)}
        for place, case in enumerate(cases):
            if place not in quick:
                case.add_marker(pytest.mark.slow)
    # The longest tests begin, so that no process of pytest ends long after the others.
    items.sort(key=lambda item: item.path.name != "test_packaging.py")
