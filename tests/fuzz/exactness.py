"""The ops on every instruction set and several thread counts, against a float64 oracle.

python tests/fuzz/exactness.py --seconds 600
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import campaign
import torch
from search_data import FAMILIES, LAYOUTS, Draw, laid_out, pair
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # the oracle is that of all tests
import oracle

import vqvae_fast
from vqvae_fast import _native

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Around the tiles' sizes, and around what the filter in integers asks for (N > 8, K >= 256,
# K * D >= 16384, D >= 8).
ROWS = (1, 2, 3, 7, 8, 9, 13, 14, 15, 28, 29, 63, 65, 130, 300)
CODES = (1, 2, 3, 15, 17, 31, 64, 65, 127, 255, 256, 257, 300, 511, 513, 1000, 2049, 4097)
DIMS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 200, 257)
LARGEST = 1 << 23  # of N * K * D: a case takes a fraction of a second


@dataclass
class Ways:
    """The instruction sets and thread counts on which a case runs."""

    choices: list[tuple[str | None, int]]

    @staticmethod
    def draw(choices: random.Random) -> "Ways":
        sets = _native.extension.available_cpu_isas() if _native.extension else [None]
        return Ways([(isa, choices.randint(1, 4)) for isa in sets])

    @contextmanager
    def _on(self, isa: str | None, threads: int) -> Iterator[None]:
        before = torch.get_num_threads()
        isa_before = _native.extension.cpu_isa() if _native.extension else None
        try:
            torch.set_num_threads(threads)
            if isa is not None:
                _native.extension.set_cpu_isa(isa)
            yield
        finally:
            torch.set_num_threads(before)
            if isa_before is not None:
                _native.extension.set_cpu_isa(isa_before)

    def same_bits(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The call's result, which must have the same bits everywhere."""
        first: tuple[Tensor, ...] | None = None
        for isa, threads in self.choices:
            with self._on(isa, threads):
                result = call()
            first = result if first is None else first
            for number, (one, other) in enumerate(zip(first, result, strict=True)):
                where = f"{isa} with {threads} threads and {self.choices[0]}"
                assert same(one, other), f"result {number} differs between {where}"
        assert first is not None
        return first


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, but for the payload of NaNs."""
    unequal = (a != b) & ~(a.isnan() & b.isnan()) if a.is_floating_point() else a != b
    return a.dtype == b.dtype and a.shape == b.shape and not bool(unequal.any())


@dataclass
class Exactness:
    """One op on one pair of tensors."""

    what: str
    seed: int
    rows: int
    codes: int
    dim: int
    dtype: torch.dtype
    family: str
    strays: bool
    layouts: tuple[str, str]
    books: int
    ways: Ways

    def __str__(self) -> str:
        books = f", {self.books} books" if self.books else ""
        strays = ", strays" if self.strays else ""
        sizes = f"N={self.rows} K={self.codes} D={self.dim}"
        ways = " ".join(f"{isa}:{threads}" for isa, threads in self.ways.choices)
        return (
            f"{self.what}, {sizes}, {self.dtype}, {self.family}{strays}{books}, "
            f"{' and '.join(self.layouts)}, {ways}"
        )

    def run(self) -> str:
        choices = random.Random(self.seed)
        numbers = torch.Generator().manual_seed(self.seed)
        draw = Draw(self.rows, self.codes, self.dim, self.dtype, choices, numbers)
        pairs = [pair(draw, self.family, self.strays) for _ in range(max(1, self.books))]
        z, codebook = (torch.stack(part) for part in zip(*pairs, strict=True))
        if not self.books:
            z, codebook = z[0], codebook[0]
        z, codebook = laid_out(z, self.layouts[0]), laid_out(codebook, self.layouts[1])
        before = z.clone(), codebook.clone()
        getattr(self, f"_{self.what.replace(' ', '_')}")(z, codebook, draw)
        assert same(z, before[0]), "z was changed"
        assert same(codebook, before[1]), "the codebook was changed"
        return self.what

    def _check(self, z: Tensor, codebook: Tensor, indices: Tensor, distances: Tensor) -> None:
        exact = FAMILIES[self.family][1] and not self.strays and self.dtype != torch.float16
        oracle.check((indices, distances), z, codebook, exact_ties=exact, excess=0.0)

    def _search(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        indices, distances = self.ways.same_bits(lambda: vqvae_fast.nearest_code(z, codebook))
        self._check(z, codebook, indices, distances)
        # What a row gets depends on that row alone, wherever it lies.
        order = torch.randperm(self.rows, generator=draw.numbers)
        order = order[: draw.choices.randint(1, self.rows)]
        part = vqvae_fast.nearest_code(z.contiguous()[..., order, :], codebook.contiguous())
        assert same(part.indices, indices[..., order]), "a row's index depends on the others"
        assert same(part.distances, distances[..., order]), "a distance depends on the others"

    def _quantize(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        weights = draw.choices.choice([0.0, 0.25, 1.0]), draw.choices.choice([0.0, 1.0])
        result = self.ways.same_bits(
            lambda: vqvae_fast.quantize(
                z, codebook, commitment_weight=weights[0], codebook_weight=weights[1]
            )
        )
        quantized, indices, loss, distances = result
        self._check(z, codebook, indices, distances)
        assert same(quantized, _take(codebook, indices)), "quantized is not the chosen code"
        expected = distances.double().sum() * sum(weights) / z.numel()
        limit = torch.finfo(loss.dtype).max / (1 + z.numel())
        if expected.isfinite() and expected * z.numel() < limit:
            torch.testing.assert_close(
                loss.double(), expected, rtol=1e-5, atol=torch.finfo(loss.dtype).tiny
            )

    def _residual(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        books = codebook if codebook.dim() == 3 else codebook[None].expand(3, -1, -1)
        z = z[0] if z.dim() == 3 else z
        indices, quantized = self.ways.same_bits(lambda: vqvae_fast.residual_nearest_code(z, books))
        residual, total = z, torch.zeros_like(z)
        for book, chosen in zip(books, indices.unbind(-1), strict=True):
            true = (residual.double() - book[chosen].double()).square().sum(dim=1)
            true = true.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
            true[residual.isnan().any(dim=1)] = torch.nan
            oracle.check((chosen, true), residual, book, excess=0.0)
            residual, total = residual - book[chosen], total + book[chosen]
        assert same(quantized, total), "quantized is not the sum of the codes"

    def _segment_sum(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        src = z[0] if z.dim() == 3 else z
        indices = draw.integers(self.rows, -1 if draw.choices.random() < 0.5 else 0, self.codes)
        if draw.choices.random() < 0.3:
            indices = indices.clamp(max=draw.choices.randrange(self.codes))
        sums, counts = self.ways.same_bits(lambda: vqvae_fast.segment_sum(src, indices, self.codes))
        expected, magnitudes, number = oracle.segment_sums(src, indices, self.codes)
        assert torch.equal(counts.double(), number.double()), "wrong counts"
        rounded = expected.to(sums.dtype)
        last = 0.0 if sums.dtype == torch.float64 else 2.0**-24
        allowed = (last * 1.01 + self.rows * 2.0**-53) * magnitudes
        allowed = allowed + torch.finfo(sums.dtype).smallest_normal * 2.0**-22
        right = ((sums.double() - expected).abs() <= allowed) | (sums == rounded)
        right |= ~expected.isfinite() & ~sums.isfinite()
        assert right.all(), "wrong sums"

    def _similarity(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        metric = draw.choices.choice(["cosine", "dot"])
        indices, distances = self.ways.same_bits(
            lambda: vqvae_fast.nearest_code(z, codebook, metric=metric)  # type: ignore[arg-type]
        )
        one = (z, codebook, indices, distances)
        for of_a_book in zip(*one, strict=True) if codebook.dim() == 3 else [one]:
            _check_similarity(*of_a_book, metric)

    def _gradient(self, z: Tensor, codebook: Tensor, draw: Draw) -> None:
        weights = draw.choices.choice([0.0, 0.25, 1.0]), draw.choices.choice([0.0, 0.5, 1.0])
        grad = torch.randn(z.shape, generator=draw.numbers, dtype=torch.float64).to(z.dtype)
        sparse = draw.choices.random() < 0.3

        def ours() -> tuple[Tensor, ...]:
            leaves = [t.detach().requires_grad_() for t in (z, codebook)]
            out = vqvae_fast.quantize(
                *leaves, commitment_weight=weights[0], codebook_weight=weights[1], sparse=sparse
            )
            of = (grad, torch.full_like(out.loss, 3))
            gradients = torch.autograd.grad((out.quantized, out.loss), leaves, of)
            return (*(g.to_dense() for g in gradients), out.indices)

        *gradients, indices = self.ways.same_bits(ours)
        leaves = [t.double().requires_grad_() for t in (z, codebook)]
        q = _take(leaves[1], indices)
        loss = weights[0] * (leaves[0] - q.detach()).square().mean()
        loss = loss + weights[1] * (leaves[0].detach() - q).square().mean()
        scalar = (grad.double() * (leaves[0] + (q - leaves[0]).detach())).sum() + 3 * loss
        for name, got, right in zip(
            ("z", "codebook"), gradients, torch.autograd.grad(scalar, leaves), strict=True
        ):
            if not right.isfinite().all() or right.abs().max() > torch.finfo(z.dtype).max / 2:
                continue
            info = torch.finfo(z.dtype)
            # All rows may add to one code, and cancel. In float64 the oracle's sum rounds, too.
            terms = 6 * self.rows * (leaves[0] - q).abs().max().item() / z.numel()
            digits = (8 + self.rows) * 2.0**-52 if z.dtype == torch.float64 else 2.0**-21
            slack = info.smallest_normal + digits * max(right.abs().max().item(), terms)
            torch.testing.assert_close(
                got.double(),
                right,
                rtol=2 * info.eps,
                atol=slack,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def _take(codebook: Tensor, indices: Tensor) -> Tensor:
    if codebook.dim() == 2:
        return codebook[indices]
    return torch.stack([book[i] for book, i in zip(codebook, indices, strict=True)])


def _check_similarity(
    z: Tensor, codebook: Tensor, indices: Tensor, distances: Tensor, metric: str
) -> None:
    """The documented error: 4e-6 of |z| * max|e| (4e-12 in float64), ties not counted."""
    rows, codes = z.double(), codebook.double()
    if metric == "cosine":
        rows, codes = (t / t.abs().amax(dim=1, keepdim=True) for t in (rows, codes))
        rows, codes = (t / t.norm(dim=1, keepdim=True) for t in (rows, codes))
    usable = codes.isfinite().all(dim=1)
    unscaled = torch.ones((), dtype=torch.float64)
    if metric == "dot":  # products of the scaled numbers neither over- nor underflow
        largest = codes[usable].abs().amax().clamp(min=1e-320) if usable.any() else unscaled
        lengths = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-320)
        rows, codes, unscaled = rows / lengths, codes / largest, largest * lengths[:, 0]
    if not usable.any():
        assert (indices == 0).all(), "where no code is usable, code 0 must be chosen"
        return
    finite = rows.isfinite().all(dim=1)
    assert (indices[rows.isnan().any(dim=1)] == 0).all(), "a row with a NaN must get code 0"
    rows, indices, distances = rows[finite], indices[finite], distances[finite]
    unscaled = unscaled.expand(len(finite))[finite]
    assert usable[indices].all(), "a code that is not finite was chosen"
    products = rows @ codes[usable].T
    chosen = (rows * codes[indices]).sum(dim=1)
    tolerance = 4e-12 if z.dtype == torch.float64 else 4e-6
    unit = rows.norm(dim=1) * codes[usable].norm(dim=1).max()
    if len(rows) == 0:
        return
    assert (products.amax(dim=1) - chosen <= tolerance * unit).all(), "not the most similar code"
    expected = (1 - chosen if metric == "cosine" else -chosen) * unscaled
    info = torch.finfo(distances.dtype)
    near = (distances.double() - expected).abs() <= tolerance / 4 * unit * unscaled + info.tiny
    assert (near | (expected.abs() > info.max)).all(), "not the code's dissimilarity"


OPS = ("search",) * 6 + ("quantize", "residual", "segment sum", "similarity", "gradient")


def draw(choices: random.Random) -> Exactness:
    """A case that runs in a fraction of a second."""
    what = choices.choice(OPS)
    while True:
        rows, codes, dim = (choices.choice(sizes) for sizes in (ROWS, CODES, DIMS))
        if choices.random() < 0.3:
            rows, codes, dim = (
                choices.randint(1, 200),
                choices.randint(1, 700),
                choices.randint(1, 80),
            )
        if rows * codes * dim <= LARGEST:
            break
    tame = what == "gradient"
    return Exactness(
        what,
        choices.randrange(2**31),
        rows,
        codes,
        dim,
        choices.choice(DTYPES),
        choices.choice(sorted(FAMILIES)),
        not tame and choices.random() < 0.25,
        (choices.choice(LAYOUTS), choices.choice(LAYOUTS)),
        choices.choice([0, 0, 0, 1, 2, 3]),
        Ways.draw(choices),
    )


FUZZER = campaign.Fuzzer(__file__, draw)

if __name__ == "__main__":
    campaign.main(FUZZER, __doc__)
