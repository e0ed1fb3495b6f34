from collections.abc import Callable, Iterator

import host_kernels
import pytest
import torch
from kernels import DTYPES, INSTRUCTION_SETS, KERNELS, Implementation

import vqvae_fast
from vqvae_fast import _native, reference, settings

REFERENCE = Implementation(
    reference.nearest_code,
    reference.quantize,
    reference.segment_sum,
    reference.quantize_backward,
)
HOST_CUDA = Implementation(
    host_kernels.nearest_code,
    host_kernels.quantize,
    host_kernels.segment_sum,
    host_kernels.quantize_backward,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def restore() -> Iterator[None]:
    """Puts the instruction set and the number of threads back."""
    threads = torch.get_num_threads()
    isa = _native.extension.cpu_isa() if _native.extension else None
    yield
    torch.set_num_threads(threads)
    if isa is not None:
        _native.extension.set_cpu_isa(isa)


# In a process of Triton's interpreter (make test-interpret) its kernels serve the ops.
ALL = (
    ["triton"]
    if settings.current.triton_interprets
    else ["reference", *INSTRUCTION_SETS, "cuda on the host"]
)


@pytest.fixture(autouse=settings.current.triton_interprets)
def fresh_plans() -> Iterator[None]:
    """Triton's plans of before are forgotten: a test may have replaced what they launch."""
    from vqvae_fast.triton.launch import forget_plans

    forget_plans()
    yield
    forget_plans()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the search meet both of its forms in Triton."""
    if "implementation" in metafunc.fixturenames:
        is_search = metafunc.module.__name__.startswith("test_search")
        one_launch = ["triton in one launch"] if "triton" in ALL and is_search else []
        metafunc.parametrize("implementation", [*ALL, *one_launch], indirect=True)


@pytest.fixture
def implementation(
    request: pytest.FixtureRequest, restore: None, monkeypatch: pytest.MonkeyPatch
) -> Implementation:
    """The reference, every instruction set's kernels and CUDA's stand-in; or Triton's forms."""
    if request.param.startswith("triton"):
        from vqvae_fast.triton import search

        form = "direct" if request.param == "triton in one launch" else "filter"
        monkeypatch.setattr(search, "forced_form", form)
    if request.param == "reference":
        return REFERENCE
    if request.param == "cuda on the host":
        if reason := host_kernels.why_not():
            pytest.skip(reason)
        return HOST_CUDA
    if request.param in INSTRUCTION_SETS:
        _native.extension.set_cpu_isa(request.param)
    return KERNELS


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def search_everywhere(restore: None) -> Callable:
    """Runs nearest_code in every instruction set and on CUDA's stand-in: (name, result) of each."""
    if not INSTRUCTION_SETS:
        pytest.skip("the C++ extension is not there")

    def run(z: torch.Tensor, codebook: torch.Tensor) -> list:
        results = []
        for isa in INSTRUCTION_SETS:
            _native.extension.set_cpu_isa(isa)
            results.append((isa, vqvae_fast.nearest_code(z, codebook)))
        if host_kernels.why_not() is None:
            on_the_host = vqvae_fast.functional.NearestCode(*host_kernels.nearest_code(z, codebook))
            results.append(("cuda on the host", on_the_host))
        return results

    return run
