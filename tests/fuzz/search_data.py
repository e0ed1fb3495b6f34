"""Random vectors and codebooks that are hard to search, in random memory layouts."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Family = Callable[["Draw"], tuple[Tensor, Tensor]]


class Draw(NamedTuple):
    """Sizes, and where random numbers come from."""

    rows: int
    codes: int
    dim: int
    dtype: torch.dtype
    choices: random.Random
    numbers: torch.Generator

    def normal(self, count: int) -> Tensor:
        """[count, D] in float64."""
        return torch.randn(count, self.dim, generator=self.numbers, dtype=torch.float64)

    def integers(self, count: int, low: int, high: int) -> Tensor:
        """[count] below `high`."""
        return torch.randint(low, high, (count,), generator=self.numbers)

    def some(self, codebook: Tensor) -> Tensor:
        """A random code for every row."""
        return codebook[self.integers(self.rows, 0, len(codebook))]


def _gaussian(d: Draw) -> tuple[Tensor, Tensor]:
    return d.normal(d.rows), d.normal(d.codes)


def _offset(d: Draw) -> tuple[Tensor, Tensor]:
    offset = d.choices.choice([10.0, 1e3, -1e3, 1e6])
    return offset + d.normal(d.rows), offset + d.normal(d.codes)


def _scaled(d: Draw) -> tuple[Tensor, Tensor]:
    least, most = {torch.float16: (-20, 12), torch.float64: (-1060, 1000)}.get(d.dtype, (-150, 125))
    z, codes = (2.0 ** d.choices.randint(least, most) for _ in range(2))
    if d.choices.random() < 0.7:
        codes = z
    return z * d.normal(d.rows), codes * d.normal(d.codes)


def _subnormal(d: Draw) -> tuple[Tensor, Tensor]:
    info = torch.finfo(d.dtype)
    unit = info.smallest_normal * info.eps
    return tuple((4 * d.normal(n)).round() * unit for n in (d.rows, d.codes))  # type: ignore[return-value]


def _duplicates(d: Draw) -> tuple[Tensor, Tensor]:
    distinct = d.normal(max(1, d.codes // d.choices.choice([2, 16, 1000])))
    codes = distinct[d.integers(d.codes, 0, len(distinct))]
    return d.normal(d.rows), codes


def _one_ulp_apart(d: Draw) -> tuple[Tensor, Tensor]:
    base = (d.choices.choice([0.0, 1.0, 1000.0]) + d.normal(1)).to(d.dtype)
    codes = base.repeat(d.codes, 1)
    which = d.integers(d.codes, 0, d.dim)[:, None]
    up = torch.nextafter(base.double().to(d.dtype), torch.full_like(base, torch.inf))
    moved = torch.where(d.integers(d.codes, 0, 2)[:, None] > 0, up, base)
    codes.scatter_(1, which, moved.gather(1, which))
    spread = d.choices.choice([1e-6, 1e-3, 1.0])
    return base.double() + spread * d.normal(d.rows), codes.double()


def _collapsed(d: Draw) -> tuple[Tensor, Tensor]:
    width = d.choices.choice([1e-12, 1e-6, 1e-3])
    return d.normal(d.rows), d.normal(1) + width * d.normal(d.codes)


def _dead_code(d: Draw) -> tuple[Tensor, Tensor]:
    codes = d.normal(d.codes)
    codes[d.choices.randrange(d.codes)] = d.choices.choice([1e4, -1e4, 1e18, 1e30])
    return d.normal(d.rows), codes


def _wide_directions(d: Draw) -> tuple[Tensor, Tensor]:
    factors = torch.full((d.dim,), 0.01, dtype=torch.float64)
    factors[: d.choices.randint(1, 9)] = d.choices.choice([1.0, 30.0])
    turn, _ = torch.linalg.qr(torch.randn(d.dim, d.dim, generator=d.numbers, dtype=torch.float64))
    return d.normal(d.rows) * factors @ turn, d.normal(d.codes) * factors @ turn


def _integers(d: Draw) -> tuple[Tensor, Tensor]:
    grain = d.choices.choice([0.5, 1.0, 3.0])
    unit = 2.0 ** d.choices.randint(-8, 8)
    return tuple((grain * d.normal(n)).round() * unit for n in (d.rows, d.codes))  # type: ignore[return-value]


def _on_codes(d: Draw) -> tuple[Tensor, Tensor]:
    codes = d.choices.choice([0.0, 1000.0]) + d.normal(d.codes)
    z = d.some(codes)
    return z + d.choices.choice([0.0, 1e-9, 1e-4]) * d.normal(d.rows), codes


def _midway(d: Draw) -> tuple[Tensor, Tensor]:
    codes = d.normal(d.codes)
    return (d.some(codes) + d.some(codes)) / 2, codes


def _clusters(d: Draw) -> tuple[Tensor, Tensor]:
    centres = 1000 * d.normal(5)
    codes = centres[torch.arange(d.codes) % 5] + 0.01 * d.normal(d.codes)
    return d.some(codes) + 0.01 * d.normal(d.rows), codes


def _one_row(d: Draw) -> tuple[Tensor, Tensor]:
    return d.normal(1).expand(d.rows, -1), d.normal(d.codes)


def _sphere(d: Draw) -> tuple[Tensor, Tensor]:
    codes = torch.nn.functional.normalize(d.normal(d.codes), dim=1)
    return 10.0 ** d.choices.randint(-9, 0) * d.normal(d.rows), codes


# Each family says how it draws, and whether float64 distances of its data have no rounding.
FAMILIES: dict[str, tuple[Family, bool]] = {
    "Gaussian": (_gaussian, False),
    "offset": (_offset, False),
    "scaled": (_scaled, False),
    "subnormal": (_subnormal, False),
    "duplicates": (_duplicates, False),
    "one ulp apart": (_one_ulp_apart, False),
    "collapsed": (_collapsed, False),
    "a dead code": (_dead_code, False),
    "wide directions": (_wide_directions, False),
    "integers": (_integers, True),
    "on codes": (_on_codes, False),
    "midway": (_midway, False),
    "clusters": (_clusters, False),
    "one row many times": (_one_row, False),
    "codes on a sphere": (_sphere, False),
}
_STRAYS = (float("nan"), float("inf"), float("-inf"), 1e4, 1e30, 0.0, -0.0, 1e-40)


def pair(draw: Draw, family: str, strays: bool) -> tuple[Tensor, Tensor]:
    """z [N, D] and codebook [K, D] of the family; with strays in a few places."""
    z, codebook = (t.to(draw.dtype) for t in FAMILIES[family][0](draw))
    if strays:
        z, codebook = z.clone(), codebook.clone()
        for tensor in (z, codebook):
            for _ in range(draw.choices.choice([0, 1, 3, 20])):
                row, column = draw.choices.randrange(len(tensor)), draw.choices.randrange(draw.dim)
                tensor[row, column] = draw.choices.choice(_STRAYS)
        if draw.choices.random() < 0.1:  # no usable code at all
            codebook[:, draw.choices.randrange(draw.dim)] = draw.choices.choice(_STRAYS[:3])
    return z, codebook


LAYOUTS = ("contiguous", "column major", "slice", "every other column", "every other row")


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers [..., N, D] in another memory layout."""
    *books, rows, columns = tensor.shape
    if layout == "column major":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "slice":
        room = tensor.new_full((*books, rows + 2, columns + 3), torch.nan)
        view = room[..., 1:-1, 2:-1]
    elif layout == "every other column":
        view = tensor.new_full((*books, rows, 2 * columns), torch.nan)[..., 1::2]
    elif layout == "every other row":
        view = tensor.new_full((*books, 3 * rows, columns), torch.nan)[..., ::3, :]
    else:
        return tensor.contiguous()
    return view.copy_(tensor)
