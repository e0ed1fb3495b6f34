"""Checks that each kernel runs on the device, is right, and returns the same bits every time."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_first import launches
from benchmarks.gpu_first.device import device_of, synchronize
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast import backends
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.bench.exactness import (
    smallest_distances,
    violating_share,
    violating_stages,
    wrong_sums,
)

_LAUNCHES = 20
_SECONDS = 60.0
_WIDE, _HALF, _BRAIN = torch.float32, torch.float16, torch.bfloat16
Results = tuple[Tensor, ...]


class WrongAnswerError(AssertionError):
    """An answer is not the nearest code, a sum is wrong, or its bits differ the next time."""


class Case(NamedTuple):
    """A call, and a check of its results.

    Attributes:
        name: the name in words.
        call: the call that launches the kernels.
        wrong: counts the wrong numbers of its results, by kind.
    """

    name: str
    call: Callable[[], Results]
    wrong: Callable[[Results], dict[str, int]]


def steps(setting: Setting) -> list[Step]:
    """Return a step for each case and backend; the most frequent calls come first."""
    gpu = device_of(setting)
    kind = gpu.device.type
    usable = [b.name for b in backends.backends(gpu.device) if b.available]
    names = [name for name in ("triton", "cuda") if name in usable]
    if not names:
        raise RuntimeError(f"neither Triton nor the CUDA kernels serve {kind}: {usable}")
    made = []
    for backend in names:
        for name, case in _cases(gpu.device, backend, setting.rehearse):
            run = functools.partial(_triage, case, setting, backend)
            made.append(Step(f"{backend}: {name}", _SECONDS, run))
    return made


def _triage(make: Callable[[], Case], setting: Setting, backend: str, emit: Emit) -> None:
    gpu = device_of(setting)
    case = make()
    before = set(launches.loaded())
    first = case.call()
    synchronize(gpu)
    wrong = case.wrong(first)
    times = 2 if setting.rehearse else _LAUNCHES
    unstable = sum(not _same(case.call(), first) for _ in range(times))
    kernels = sorted(set(launches.loaded()) - before)
    emit(
        ran=True,
        wrong=sum(wrong.values()),
        launches_with_other_bits=unstable,
        kernels=[f"{k.kernel} {k.registers}+{k.spilled}" for k in kernels],
    )
    if any(wrong.values()):
        raise WrongAnswerError(", ".join(f"{n} {what}" for what, n in wrong.items() if n))
    if unstable:
        raise WrongAnswerError(f"{unstable} of {times} launches gave other bits than the first")


def _same(some: Results, others: Results) -> bool:
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(some, others, strict=True)
    )


def _cases(device: torch.device, backend: str, tiny: bool) -> list[tuple[str, Callable[[], Case]]]:
    """Returns names, and functions that make the cases when their turns come."""
    rows, codes = (40, 72) if tiny else (4096, 8192)
    kernels = functools.partial(backends.kernels, device, backend)
    random = functools.partial(torch.randn, device=device)
    made: list[tuple[str, Callable[[], Case]]] = []

    def search(name: str, data: Callable[[], tuple[Tensor, Tensor]], copies: int = 1) -> None:
        def make() -> Case:
            torch.manual_seed(0)
            z, codebook = data()
            return Case(
                name,
                lambda: kernels().quantize(z, codebook),
                lambda results: _wrong_search(z, codebook, copies, results),
            )

        made.append((name, make))

    def gaussian(n: int, k: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return random(n, dim).to(dtype), random(k, dim).to(dtype)

    dims = (8, 64) if tiny else (8, 64, 256, 16, 32, 128, 512, 1, 17, 100, 200, 1000)
    for dim in dims:
        for dtype in (_WIDE, _BRAIN, _HALF) if dim in (8, 64, 256) else (_WIDE,):
            text = f"search, D={dim}, {str(dtype).removeprefix('torch.')}"
            search(text, functools.partial(gaussian, rows, codes, dim, dtype))
    for name, data, copies in _hostile(rows, codes, random):
        search(f"search, {name}", data, copies)
    search("search, D=64, float64", lambda: gaussian(rows // 8, codes, 64, torch.float64))
    search("search, 3 rows, many codes", lambda: gaussian(3, 9 * codes, 64, _WIDE))
    search("search, feature maps", lambda: (random(3, 64, 7, 11).movedim(1, -1), random(codes, 64)))
    if backend == "triton":
        for dim in (16,) if tiny else (16, 32, 64, 128):
            made.append((f"residual, D={dim}", lambda dim=dim: _residual(device, dim, tiny)))
    for dim in (64,) if tiny else (8, 64, 256):
        for dtype in (_WIDE, _BRAIN):
            text = f"D={dim}, {str(dtype).removeprefix('torch.')}"
            pieces = functools.partial(_sums_data, rows, codes, dim, dtype, random)
            made.append((f"segment sum, {text}", lambda p=pieces: _sums(kernels(), *p())))
            made.append((f"backward, {text}", lambda p=pieces: _backward(kernels(), *p())))
    return made


def _hostile(
    rows: int, codes: int, random: Callable[..., Tensor]
) -> list[tuple[str, Callable[[], tuple[Tensor, Tensor]], int]]:
    """Returns data that is hard for a search: its name, its maker, and the copies of each code."""

    def subnormal() -> tuple[Tensor, Tensor]:
        """Draw codes of few steps of float16's smallest number, and rows of different sizes."""
        codebook = (random(codes, 16) > 0.5).float() * 2.0**-24
        z = random(rows, 16) * 2.0**-18
        z[::2] = 3000.0 * torch.sign(z[::2])
        z[1::2, 0] = 0.25
        return z, codebook

    def sizes() -> tuple[Tensor, Tensor]:
        """Draw codes of very different sizes."""
        scale = 2.0 ** torch.linspace(-20, 10, codes, device=random(1).device)
        return random(rows, 64), random(codes, 64) * scale[:, None]

    def collapsed() -> tuple[Tensor, Tensor]:
        """Draw codes of which all but a few lie within rounding of one point."""
        codebook = 1.0 + 1e-7 * random(codes, 64)
        codebook[: codes // 8] = random(codes // 8, 64)
        return 1.0 + 0.01 * random(rows, 64), codebook

    return [
        ("offset of 1000", lambda: (1000 + random(rows, 64), 1000 + random(codes, 64)), 1),
        ("codes in float16's subnormals", subnormal, 1),
        ("codes of many sizes", sizes, 1),
        ("collapsed book", collapsed, 1),
        ("each code 8 times", lambda: (random(rows, 64), random(codes // 8, 64).repeat(8, 1)), 8),
        ("ties", lambda: (random(rows, 2).round(), random(codes, 2).round()), 1),
        ("in two dimensions", lambda: (random(rows, 2), random(codes, 2)), 1),
    ]


def _wrong_search(z: Tensor, codebook: Tensor, copies: int, results: Results) -> dict[str, int]:
    quantized, indices, distances = (t.reshape(-1, *t.shape[z.dim() - 1 :]) for t in results)
    rows = z.reshape(-1, z.shape[-1])
    smallest = smallest_distances(rows, codebook)
    far = round(len(rows) * violating_share(rows, codebook, indices, smallest))
    chosen = codebook[indices]
    exact = (rows.double() - chosen.double()).square().sum(1)
    off = (distances.double() - exact).abs() > 1e-6 * exact + 1e-37
    return {
        "rows with a code that is not the nearest": far,
        "rows with a wrong distance": int(off.sum()),
        "rows with another vector than their code's": int((quantized != chosen).any(1).sum()),
        "rows with a later copy of their code": int((indices >= len(codebook) // copies).sum()),
    }


def _residual(device: torch.device, dim: int, tiny: bool) -> Case:
    from vqvae_fast.backends.triton import ops as kernels
    from vqvae_fast.bench.data import Shape, gaussian_stages

    shape = Shape(24, 40, dim) if tiny else Shape(4096, 1024, dim)
    z, books = gaussian_stages(shape, 3, device)

    def wrong(results: Results) -> dict[str, int]:
        share = violating_stages(z, books, results[0].reshape(shape.n, -1))
        return {"rows of a stage with a code that is not the nearest": round(share * shape.n)}

    return Case("residual", lambda: tuple(kernels.residual_nearest_code(z, books)), wrong)


def _sums_data(
    rows: int, codes: int, dim: int, dtype: torch.dtype, random: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z, codebook = random(rows, dim).to(dtype), random(codes, dim).to(dtype)
    return z, codebook, torch.randint(codes, (rows,), device=z.device)


def _sums(kernels: backends.Kernels, z: Tensor, codebook: Tensor, indices: Tensor) -> Case:
    def wrong(results: Results) -> dict[str, int]:
        share = wrong_sums(*results, z, indices)
        return {"sums or counts": round(share * results[0].numel())}

    return Case("sums", lambda: kernels.segment_sum(z, indices, len(codebook)), wrong)


def _backward(kernels: backends.Kernels, z: Tensor, codebook: Tensor, indices: Tensor) -> Case:
    loss = torch.full((), 3.0, dtype=torch.float32, device=z.device)
    weights = (0.25, 1.0)
    arguments = (z * 2, loss, z, codebook, indices, *weights)

    def wrong(results: Results) -> dict[str, int]:
        """Compare with plain PyTorch in float64.

        Every rounding may cost half of the type's last bit of the terms of a sum, not of the sum:
        two errors of a code may cancel.
        """
        wide = tuple(t.double() if t.is_floating_point() else t for t in arguments[:5])
        wanted = reference.quantize_backward(*wide, *weights)
        error = (wide[2] - wide[3][indices]).abs()
        sums, counts = reference.segment_sum(error, indices, len(codebook))
        per_element = 2 * loss.double() / z.numel()
        terms = (wide[0].abs() + weights[0] * per_element * error, weights[1] * per_element * sums)
        roundings = (4.0, counts[:, None] + 4)
        half_bit = torch.finfo(z.dtype).eps / 2
        off = 0
        for found, exact, term, count in zip(results, wanted, terms, roundings, strict=True):
            limit = half_bit * (count * term + torch.finfo(z.dtype).tiny)
            off += int(((found.double() - exact).abs() > limit).sum())
        return {"numbers of a gradient": off}

    return Case("backward", lambda: kernels.quantize_backward(*arguments), wrong)
