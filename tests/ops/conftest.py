from collections.abc import Callable, Iterator

import host_kernels
import pytest
import torch
from kernels import DTYPES, INSTRUCTION_SETS, KERNELS, Implementation

import vqvae_fast
from benchmarks.matrix_unit import UNITS, matrix_product
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


@pytest.fixture(autouse=True)
def matrix_unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Lets the interpreter's float16 products be those of the unit that the test runs under."""
    name: str | None = getattr(request, "param", None)
    if name is not None:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def create_dot(self, a, b, accumulator, *precision):
            total = matrix_product(a.data, b.data, accumulator.data, UNITS[name])
            return TensorHandle(total, accumulator.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    return name


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


# Tests of the search meet both of its forms in Triton. The modules that are named here run under
# the rules by which matrix units add; elsewhere the interpreter multiplies as numpy does.
ONE_LAUNCH = "triton in one launch"
UNITS_OF_FORMS = [("triton", "ampere"), ("triton", "hopper"), (ONE_LAUNCH, "hopper")]
UNDER_EACH_UNIT = ("test_search_adversarial", "test_residual", "test_matrix_unit")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module, names = metafunc.module.__name__, metafunc.fixturenames
    needs_no_unit = "float64" in metafunc.function.__name__  # nor does it have another form
    if not settings.current.triton_interprets or needs_no_unit:
        if "implementation" in names:
            metafunc.parametrize("implementation", ALL, indirect=True)
    elif module in UNDER_EACH_UNIT and "implementation" in names:
        both = ("implementation", "matrix_unit")
        metafunc.parametrize(both, UNITS_OF_FORMS, indirect=True)
    elif module in UNDER_EACH_UNIT:
        metafunc.parametrize("matrix_unit", ["ampere", "hopper"], indirect=True)
    elif "implementation" in names:
        forms = [*ALL, ONE_LAUNCH] if module.startswith("test_search") else ALL
        metafunc.parametrize("implementation", forms, indirect=True)


@pytest.fixture
def implementation(
    request: pytest.FixtureRequest, restore: None, monkeypatch: pytest.MonkeyPatch
) -> Implementation:
    """The reference, every instruction set's kernels and CUDA's stand-in; or Triton's forms."""
    if request.param.startswith("triton"):
        from vqvae_fast.triton import search

        form = "direct" if request.param == ONE_LAUNCH else "filter"
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
