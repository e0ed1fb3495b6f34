from collections.abc import Callable, Iterator

import host_kernels
import pytest
import torch
from kernels import (
    DTYPES,
    EVERY_SET,
    EVERY_WAY,
    HOST_CUDA,
    INSTRUCTION_SETS,
    KERNELS,
    ON_THE_HOST,
    REFERENCE,
    SERVES_CPP,
    Implementation,
    compiled,
)

import vqvae_fast
from benchmarks.matrix_unit import UNITS, matrix_product
from vqvae_fast import _native, settings


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


@pytest.fixture(scope="session", autouse=settings.current.triton_interprets)
def the_interpreter_is_quick() -> Iterator[None]:
    from quick_interpreter import quick_interpreter

    with quick_interpreter():
        yield


@pytest.fixture
def restore() -> Iterator[None]:
    """Puts the instruction set and the number of threads back."""
    threads = torch.get_num_threads()
    isa = _native.extension.cpu_isa() if _native.extension else None
    yield
    torch.set_num_threads(threads)
    if isa is not None:
        _native.extension.set_cpu_isa(isa)


# A test of searches and sums checks the reference and the portable kernels; all other kernels must
# return the bits of the portable ones. No instruction set has a backward pass of its own, so a test
# of the backward pass runs the op once; the CUDA kernel rounds in its own way. In a process of
# Triton's interpreter (make test-interpret) the Triton kernels serve the ops.
IMPLEMENTATIONS = {
    "reference": REFERENCE,
    "every instruction set": EVERY_SET,
    "the op": KERNELS,
    ON_THE_HOST: HOST_CUDA,
    "triton": KERNELS,
    "triton in one launch": KERNELS,
}


def served_by(module: str) -> list[str]:
    """The implementations that the tests of a module meet."""
    if settings.current.triton_interprets:
        return ["triton"]
    if module == "test_quantize_backward":
        return ["reference", "the op", ON_THE_HOST]
    if not SERVES_CPP:  # another backend, whose bits are its own
        return ["reference", "the op", ON_THE_HOST]
    return ["reference", "every instruction set"]


@pytest.fixture(autouse=settings.current.triton_interprets)
def fresh_plans() -> Iterator[None]:
    """Triton's plans of before are forgotten: a test may have replaced what they launch."""
    from vqvae_fast.backends.triton.launch import forget_plans

    forget_plans()
    yield
    forget_plans()


# Tests of the search meet both of its forms in Triton. The modules that are named here run under
# the rules by which matrix units add: one module under each unit, the others under the one that
# loses more. Elsewhere the interpreter multiplies as numpy does.
ONE_LAUNCH = "triton in one launch"
FORMS_UNDER_A_UNIT = [
    ("triton", "ampere"),
    pytest.param(ONE_LAUNCH, "hopper", marks=pytest.mark.slow),
]
FORMS_UNDER_EACH_UNIT = [
    *FORMS_UNDER_A_UNIT,
    pytest.param("triton", "hopper", marks=pytest.mark.slow),
]
UNDER_A_UNIT = ("test_search_adversarial", "test_residual")
UNDER_EACH_UNIT = ("test_matrix_unit",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module, names = metafunc.module.__name__, metafunc.fixturenames
    needs_no_unit = "float64" in metafunc.function.__name__  # nor does it have another form
    if not settings.current.triton_interprets or needs_no_unit:
        if "implementation" in names:
            metafunc.parametrize("implementation", served_by(module), indirect=True)
    elif module in (*UNDER_A_UNIT, *UNDER_EACH_UNIT) and "implementation" in names:
        forms = FORMS_UNDER_EACH_UNIT if module in UNDER_EACH_UNIT else FORMS_UNDER_A_UNIT
        metafunc.parametrize(("implementation", "matrix_unit"), forms, indirect=True)
    elif module in UNDER_EACH_UNIT:
        units = ["ampere", pytest.param("hopper", marks=pytest.mark.slow)]
        metafunc.parametrize("matrix_unit", units, indirect=True)
    elif module in UNDER_A_UNIT:
        metafunc.parametrize("matrix_unit", ["ampere"], indirect=True)
    elif "implementation" in names:
        searches = module.startswith("test_search")
        one_launch = [pytest.param(ONE_LAUNCH, marks=pytest.mark.slow)] if searches else []
        metafunc.parametrize("implementation", [*served_by(module), *one_launch], indirect=True)


@pytest.fixture
def implementation(
    request: pytest.FixtureRequest, restore: None, monkeypatch: pytest.MonkeyPatch
) -> Implementation:
    """One of the ways in which the ops can be served."""
    if request.param.startswith("triton"):
        from vqvae_fast.backends.triton import search

        form = "direct" if request.param == ONE_LAUNCH else "filter"
        monkeypatch.setattr(search, "forced_form", form)
    if request.param == ON_THE_HOST and (reason := host_kernels.why_not()):
        pytest.skip(reason)
    return IMPLEMENTATIONS[request.param]


# The interpreter takes its time: the quick suite meets two dtypes in it.
QUICK_DTYPES = (
    (torch.float32, torch.float16) if settings.current.triton_interprets else tuple(DTYPES)
)


@pytest.fixture(
    params=[
        dtype if dtype in QUICK_DTYPES else pytest.param(dtype, marks=pytest.mark.slow)
        for dtype in DTYPES
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def search_everywhere(restore: None) -> Callable:
    """Runs nearest_code in every instruction set and on CUDA's stand-in: (name, result) of each."""
    if not INSTRUCTION_SETS:
        pytest.skip("the C++ extension is not there")

    def run(z: torch.Tensor, codebook: torch.Tensor) -> list:
        found = [(name, compiled(name).nearest_code(z, codebook)) for name in EVERY_WAY]
        return [(name, vqvae_fast.functional.NearestCode(*result)) for name, result in found]

    return run
