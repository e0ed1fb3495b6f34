"""The same inputs give the same bits, whatever else the device does meanwhile."""

import pytest
import torch
from calls import CALLS, same

LAUNCHES = 20
# Few rows, for which the codes are shared out among programs; sizes off every block; large ones.
SHAPES = [
    *((rows, 65_537, 64) for rows in (1, 2, 7, 16, 33, 64)),
    (3, 200_003, 8),
    (1000, 1025, 32),
    (4099, 8191, 65),
    (20_000, 33, 256),
]


def inputs(rows, codes, dim, grain):
    """grain: coarse numbers, and so exact ties in masses, which a race would decide at random."""
    z, codebook = torch.randn(rows, dim), torch.randn(codes, dim)
    return (z.round(), codebook.round()) if grain else (z, codebook)


@pytest.mark.parametrize("grain", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
@pytest.mark.parametrize("name", CALLS)
def test_repeated_launches_agree(cuda, name, rows, codes, dim, grain):
    z, codebook = inputs(rows, codes, dim, grain)
    first = CALLS[name](z, codebook)
    other = torch.cuda.Stream()
    matrix = torch.randn(2048, 2048)
    torch.cuda.synchronize()
    for _ in range(LAUNCHES):
        with torch.cuda.stream(other):
            matrix @ matrix
        assert same(CALLS[name](z, codebook), first)
    torch.cuda.synchronize()


def test_a_row_does_not_depend_on_how_the_codes_are_shared_out(cuda):
    """Alone, where all programs share its codes, and among so many that each has its own rows."""
    z, codebook = torch.randn(20_000, 64), torch.randn(20_001, 64)
    codebook[10_000:] = codebook[:10_001].clone()  # ties between the parts
    whole = CALLS["nearest_code"](z, codebook)
    for count in (1, 5, 64, 1000):
        assert same(CALLS["nearest_code"](z[:count], codebook), tuple(t[:count] for t in whole))
