"""The cases of the pytest suites: named shapes with Gaussian vectors or a trained model's."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import pytest
import torch

from vqvae_fast import nearest_code
from vqvae_fast.bench import trained
from vqvae_fast.bench.data import PUBLISHED, SWEEP_SHAPES, Shape, gaussian, gaussian_stages
from vqvae_fast.bench.exactness import Smallest, smallest_distances
from vqvae_fast.bench.peers.base import always

# Larger cases, and the sweep, run with --full only.
_LARGE_FLOPS = 2e10
_TRAINED_STAGES = 4


class Named(Protocol):
    """A peer of any kind."""

    @property
    def name(self) -> str:
        """The name of the backend."""
        ...


class Case(NamedTuple):
    """A named shape and its data.

    Attributes:
        name: the shape's part of the test's id.
        shape: the shape of a stage.
        source: "Gaussian", "trained" or another name of the data.
        make: makes the data that the suite takes.
        stages: how many times the shape is searched.
        full: whether it runs with --full only.
        unavailable: None, or the reason why the data cannot be made here.
    """

    name: str
    shape: Shape
    source: str
    make: Callable[[], Any]
    stages: int = 1
    full: bool = False
    unavailable: Callable[[], str | None] = always

    @property
    def flops(self) -> float:
        """The multiplications and additions of all scores of all stages."""
        return self.stages * self.shape.flops


def _gaussian(name: str, shape: Shape, full: bool) -> Case:
    return Case(name, shape, "Gaussian", functools.partial(gaussian, shape), 1, full)


def _trained(shape: Shape, make: Callable[[], Any], stages: int = 1) -> Case:
    return Case(
        f"trained-{shape.k}x{shape.d}",
        shape,
        "trained",
        make,
        stages,
        # Each size needs a trained model of its own, so without --full only the reference's size
        # and one large codebook run.
        (shape.k, shape.d) not in ((512, 64), (8192, 64)),
        trained.unavailable,
    )


def _assigned(case: Case) -> Case:
    """Returns the case with (src [N, D], indices [N]): uniform ones, or a model's nearest codes."""

    def make() -> Any:
        z, codebook, source = case.make()
        if source == "trained":
            return z, nearest_code(z, codebook).indices
        generator = torch.Generator().manual_seed(0)
        return z, torch.randint(len(codebook), (len(z),), generator=generator)

    return case._replace(make=make)


# The data of these cases are Vectors.
PUBLISHED_CASES = tuple(
    _gaussian(name, model.shape, model.shape.flops > _LARGE_FLOPS)
    for name, model in PUBLISHED.items()
)
TRAINED_CASES = tuple(
    _trained(shape, functools.partial(trained.trained, shape.k, shape.d, shape.n))
    for shape in trained.TRAINED_SHAPES
)
SWEEP_CASES = tuple(_gaussian(shape.name, shape, full=True) for shape in SWEEP_SHAPES)
CASES = (*PUBLISHED_CASES, *TRAINED_CASES, *SWEEP_CASES)
# The data of these cases are rows and indices.
SUM_CASES = tuple(map(_assigned, CASES))
# The data of these cases are z [N, D] and codebooks [stages, K, D].
RESIDUAL_CASES = (
    *(
        Case(
            name,
            model.shape,
            "Gaussian",
            functools.partial(gaussian_stages, model.shape, model.stages),
            model.stages,
            model.stages * model.shape.flops > _LARGE_FLOPS,
        )
        for name, model in PUBLISHED.items()
        if model.stages > 1
    ),
    *(
        _trained(
            shape,
            functools.partial(trained.trained_stages, shape.k, shape.d, _TRAINED_STAGES),
            _TRAINED_STAGES,
        )
        for shape in trained.TRAINED_SHAPES
        if shape.k == 512
    ),
)


def every(
    peers: Iterable[Named], modes: Iterable[str], cases: Iterable[Case]
) -> pytest.MarkDecorator:
    """Parametrises a test over (peer, mode, case), case by case: the id is backend-mode-shape."""
    peers, modes = list(peers), list(modes)
    return pytest.mark.parametrize(
        ("peer", "mode", "case"),
        [
            pytest.param(
                peer,
                mode,
                case,
                id=f"{_words(peer.name)}-{mode}-{case.name}",
                marks=[pytest.mark.full] if case.full else [],
            )
            for case in cases
            for mode in modes
            for peer in peers
        ],
    )


@functools.lru_cache(maxsize=1)  # the tests run case by case
def data(case: Case) -> Any:
    """Return the case's data."""
    return case.make()


@functools.lru_cache(maxsize=1)
def truth(case: Case) -> Smallest:
    """Return the float64 distances to the nearest codes, for a case whose data are Vectors."""
    return smallest_distances(*data(case)[:2])


def _words(name: str) -> str:
    return "-".join(re.findall(r"[\w.+-]+", name))
