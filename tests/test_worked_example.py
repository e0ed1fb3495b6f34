"""Every number in the worked example of docs/exactness.md is computed again here."""

import re
from pathlib import Path

import pytest
import torch

from vqvae_fast import nearest_code

PAGE = (Path(__file__).parents[1] / "docs" / "exactness.md").read_text(encoding="utf-8")
EXAMPLE = PAGE[PAGE.index("## An example") : PAGE.index("## Scores")]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in EXAMPLE.splitlines()
    if re.match(r"\| \d", line)
]


def vector(text):
    return torch.tensor([float(x) for x in text.strip("() ").split(",")], dtype=torch.float64)


Z = vector(re.search(r"`z = (\(.*?\))`", EXAMPLE)[1])
CODES = torch.stack([vector(row[1]) for row in ROWS])
ROUNDED_Z, ROUNDED_CODES = Z.round(), CODES.round()
SCORES = ROUNDED_CODES @ ROUNDED_Z - CODES.square().sum(1) / 2
EXACT = CODES @ Z - CODES.square().sum(1) / 2
DISTANCES = (CODES - Z).square().sum(1)


def test_the_table_is_computed():
    assert [int(row[0]) for row in ROWS] == list(range(len(ROWS)))
    for row, rounded, score, exact, distance in zip(
        ROWS, ROUNDED_CODES, SCORES, EXACT, DISTANCES, strict=True
    ):
        assert torch.equal(vector(row[2]), rounded)
        assert row[3:] == [f"{score:.3f}", f"{exact:.3f}", f"{distance:.2f}"]
    assert torch.equal(vector(re.search(r"`z' = (\(.*?\))`", EXAMPLE)[1]), ROUNDED_Z)


def test_the_steps_are_computed():
    measured = DISTANCES[SCORES.argmax()]
    to_reach = (Z @ Z - measured) / 2
    longest = min(CODES.norm(dim=1).max(), Z.norm() + measured.sqrt())
    row_error, code_error = (Z - ROUNDED_Z).norm(), (CODES - ROUNDED_CODES).norm(dim=1).max()
    error = row_error * longest + ROUNDED_Z.norm() * code_error
    left = (to_reach - error <= SCORES).nonzero().flatten().tolist()
    nearest, z_norm = int(DISTANCES.argmin()), ROUNDED_Z.norm()
    of_left = " and ".join(f"{DISTANCES[code]:.2f}" for code in left)
    for sentence in (
        f"(|z|^2 - {measured:.2f}) / 2 = ({Z @ Z:.2f} - {measured:.2f}) / 2 = {to_reach:.3f}",
        f"{row_error:.3f} * {longest:.3f} + {z_norm:.3f} * {code_error:.3f} = {error:.3f}",
        f"`{to_reach:.3f} - {error:.3f} = {to_reach - error:.3f}`",
        f"Codes {' and '.join(map(str, left))} remain",
        f"{of_left}, so code {nearest} is the nearest",
        f"Code {SCORES.argmax()} has the best fast score, yet code {nearest} is nearer",
    ):
        assert sentence in " ".join(EXAMPLE.split())
    assert (SCORES - EXACT).abs().max() <= error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_finds_the_code_of_the_example(dtype):
    assert nearest_code(Z[None].to(dtype), CODES.to(dtype)).indices.tolist() == [0]
