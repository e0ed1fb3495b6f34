"""Named values that break searches, at any size: the data alone, without a test."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """The size of a search, and what the cases draw in it."""

    rows: int
    codes: int
    dim: int

    def normal(self, count: int) -> Tensor:
        return torch.randn(count, self.dim, dtype=torch.float64)

    def z(self) -> Tensor:
        return self.normal(self.rows)

    def book(self) -> Tensor:
        return self.normal(self.codes)

    def near(self, codebook: Tensor, spread: float) -> Tensor:
        """Rows around codes that are drawn at random."""
        picked = codebook[torch.randint(len(codebook), (self.rows,))]
        return picked + spread * self.z()

    def with_code(self, codebook: Tensor, value: float) -> Tensor:
        codebook[self.codes // 2] = value
        return codebook


Cases = dict[str, Callable[[Size], tuple[Tensor, Tensor]]]

# Off every tile, block and pass of the float search, and too small for the integer filter.
SMALL = Size(133, 101, 11)
# So short that every code is measured (csrc/cpu/search.cpp), off every group of lanes.
SHORT = Size(131, 37, 3)
# All filters serve more rows than a few, 256 codes, 16 dimensions and 2^15 elements of the codebook
# (csrc/cpu/search.cpp, csrc/cpu/int8_filter/filter.cpp). One size has an odd dimension, and one has
# more rows than a chunk of the filter, more dimensions than a step of its product, and few codes.
FILTERED = [Size(61, 2053, 17), Size(230, 517, 67)]

# All in float64, rounded to the dtype under test: z [rows, dim], codebook [codes, dim].
CASES: Cases = {
    "mean 1000, spread 1": lambda size: (1000 + size.z(), 1000 + size.book()),
    "mean 1e6, spread 1": lambda size: (1e6 + size.z(), 1e6 + size.book()),
    "codebook 1e-6 wide around 1": lambda size: (1 + 1e-6 * size.z(), 1 + 1e-6 * size.book()),
    "z around 0, codebook 1e-6 wide around 1": lambda size: (size.z(), 1 + 1e-6 * size.book()),
    "one dead code at 1e4": lambda size: (size.z(), size.with_code(size.book(), 1e4)),
    "one dead code at 1e18": lambda size: (size.z(), size.with_code(size.book(), 1e18)),
    "one dead code at 1e30": lambda size: (size.z(), size.with_code(size.book(), 1e30)),
    "the first code far away": lambda size: (
        size.z(),
        torch.cat(
            [torch.full((1, size.dim), -1e7, dtype=torch.float64), size.normal(size.codes - 1)]
        ),
    ),
    "half of the codes far away": lambda size: (
        size.z(),
        size.book() + 1e5 * (torch.arange(size.codes) % 2)[:, None],
    ),
    "z very far away": lambda size: (1e7 + size.z(), size.book()),
    "z far away in all directions": lambda size: (1e12 * size.z(), size.book()),
    "z equal to the codes": lambda size: (lambda c: (size.near(c, 0.0), c))(1000 + size.book()),
    "z very near the codes": lambda size: (lambda c: (size.near(c, 1e-9), c))(size.book()),
    "z midway between codes": lambda size: (
        lambda c: (0.5 * (size.near(c, 0.0) + size.near(c, 0.0)), c)
    )(size.book()),
    "tight clusters far apart": lambda size: (
        lambda centres: (
            centres[torch.arange(size.rows) % 5] + 0.01 * size.z(),
            centres[torch.arange(size.codes) % 5] + 0.01 * size.book(),
        )
    )(1000 * size.normal(5)),
    "collapsed book": lambda size: (size.z(), size.normal(1) + 1e-12 * size.book()),
    "codes on a sphere, z at its centre": lambda size: (
        1e-4 * size.z(),
        torch.nn.functional.normalize(size.book(), dim=1),
    ),
    "scales from 1e-12 to 1e12": lambda size: (
        size.z() * torch.logspace(-12, 12, size.rows, dtype=torch.float64)[:, None],
        size.book() * torch.logspace(12, -12, size.codes, dtype=torch.float64)[:, None],
    ),
    "a scale for each dimension": lambda size: (
        size.z() * torch.logspace(-9, 9, size.dim, dtype=torch.float64),
        size.book() * torch.logspace(-9, 9, size.dim, dtype=torch.float64),
    ),
    "squares underflow": lambda size: (1e-25 * size.z(), 1e-25 * size.book()),
    "subnormal": lambda size: (1e-41 * size.z(), 1e-41 * size.book()),
    "subnormal z": lambda size: (1e-41 * size.z(), size.book()),
    "subnormal codes": lambda size: (size.z(), 1e-41 * size.book()),
    "smallest subnormals": lambda size: (
        torch.randint(-3, 4, (size.rows, size.dim)) * 2.0**-149,
        torch.randint(-3, 4, (size.codes, size.dim)) * 2.0**-149,
    ),
    "scores overflow": lambda size: (1e30 * size.z(), 1e30 * size.book()),
    "the largest numbers": lambda size: (
        3e38 * (2 * torch.rand(size.rows, size.dim, dtype=torch.float64) - 1),
        3e38 * (2 * torch.rand(size.codes, size.dim, dtype=torch.float64) - 1),
    ),
    "only z is huge": lambda size: (1e35 * size.z(), size.book()),
    "only the codes are huge": lambda size: (size.z(), 1e35 * size.book()),
    # All integers are at the ends of their ranges: sums of products are as large as they can be.
    "corners": lambda size: (lambda c: (size.near(c, 1e-3), c))(
        (size.book() + 2 * size.normal(size.codes)[:, :1]).sign() + 1e-3 * size.book()
    ),
    "heavy tails": lambda size: (size.z() / size.z(), size.book() / size.book()),
}
HALF: Cases = {
    "subnormal": lambda size: (3e-7 * size.z(), 3e-7 * size.book()),
    "largest": lambda size: (
        65504 * torch.randint(-1, 2, (size.rows, size.dim)).double(),
        65504 * torch.randint(-1, 2, (size.codes, size.dim)).double(),
    ),
    "from subnormal to largest": lambda size: (
        size.z().sign() * torch.logspace(-7, 4.8, size.rows, dtype=torch.float64)[:, None],
        size.book().sign() * torch.logspace(-7, 4.8, size.codes, dtype=torch.float64)[:, None],
    ),
    "offset": lambda size: (100 + size.z(), 100 + size.book()),
}
DOUBLE: Cases = {
    "offset 1e8": lambda size: (1e8 + size.z(), 1e8 + size.book()),
    "offset 1e15": lambda size: (1e15 + size.z(), 1e15 + size.book()),
    "around 1e-150": lambda size: (1e-150 * size.z(), 1e-150 * size.book()),
    "squares are subnormal": lambda size: (1e-155 * size.z(), 1e-155 * size.book()),
    "squares underflow": lambda size: (1e-170 * size.z(), 1e-170 * size.book()),
    "subnormal": lambda size: (1e-310 * size.z(), 1e-310 * size.book()),
    "around 1e150": lambda size: (1e150 * size.z(), 1e150 * size.book()),
    "one dead code at 1e162": lambda size: (
        1e150 * size.z(),
        size.with_code(1e150 * size.book(), 1e162),
    ),
    "squares overflow": lambda size: (1e200 * size.z(), 1e200 * size.book()),
    "the largest numbers": lambda size: (1e307 * size.z(), 1e307 * size.book()),
}
