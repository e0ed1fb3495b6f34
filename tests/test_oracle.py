"""The oracle refuses what breaks the contract, and shares nothing with the package."""

import ast
from pathlib import Path

import oracle
import pytest
import torch

Z = torch.tensor([[0.0, 0.0], [1.0, 0.9], [3.0, 4.0], [torch.nan, 1.0]])
CODES = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [6.0, 8.0], [0.0, 8.0]])


def right():
    indices, distances = oracle.nearest(Z, CODES)
    indices[3], distances[3] = 0, torch.nan
    return indices, distances.float()


def test_it_imports_torch_alone():
    tree = ast.parse(Path(oracle.__file__).read_text())
    modules = {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    modules |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules == {"torch"}


def test_it_accepts_what_is_right():
    indices, distances = right()
    assert indices.tolist() == [1, 0, 0, 0]
    oracle.check((indices, distances), Z, CODES, exact_ties=True)
    books = (indices[None].repeat(2, 1), distances[None].repeat(2, 1))
    oracle.check(books, Z.expand(2, 4, 2), CODES.expand(2, 5, 2))


@pytest.mark.parametrize(
    ("row", "index", "distance", "sentence"),
    [
        (0, 0, 2.0, "not the nearest code: row 0, code 0"),
        (1, 2, None, "an equal code has a lower index: row 1, code 2"),
        (2, 3, None, "not the nearest code: row 2"),
        (1, 0, 0.02, "not the distance of the chosen code: row 1"),
        (0, 1, -0.0078125, "a negative distance: row 0"),
        (3, 1, None, "a row with a NaN must get code 0"),
        (3, 0, 1.0, "a row with a NaN must get a distance of NaN"),
        (0, 5, None, "index 5 of 5 codes"),
        (0, -1, None, "index -1"),
    ],
)
def test_it_refuses_what_is_wrong(row, index, distance, sentence):
    indices, distances = right()
    indices[row] = index
    if distance is not None:
        distances[row] = distance
    with pytest.raises(AssertionError, match=sentence):
        oracle.check((indices, distances), Z, CODES)


def test_an_exact_tie_is_refused_where_the_data_have_no_rounding():
    z, codes = torch.tensor([[0.0]]), torch.tensor([[1.0], [-1.0]])
    later = torch.tensor([1]), torch.tensor([1.0])
    oracle.check(later, z, codes)
    with pytest.raises(AssertionError, match="an exact tie has a lower index"):
        oracle.check(later, z, codes, exact_ties=True)


def test_a_code_that_is_not_finite_is_refused():
    z, codes = torch.zeros(1, 1), torch.tensor([[torch.inf], [3.0]])
    oracle.check((torch.tensor([1]), torch.tensor([9.0])), z, codes)
    with pytest.raises(AssertionError, match="a code that is not finite was chosen"):
        oracle.check((torch.tensor([0]), torch.tensor([torch.inf])), z, codes)


def test_equal_codes_are_found_beside_one_that_is_not_finite():
    z, codes = torch.ones(1, 1), torch.tensor([[1.0], [torch.nan], [1.0], [torch.nan]])
    oracle.check((torch.tensor([0]), torch.tensor([0.0])), z, codes)
    with pytest.raises(AssertionError, match="an equal code has a lower index"):
        oracle.check((torch.tensor([2]), torch.tensor([0.0])), z, codes)


@pytest.mark.parametrize("number", [torch.inf, 1e300])
def test_a_finite_distance_to_a_row_that_is_infinitely_far_is_refused(number):
    z, codes = torch.tensor([[number]], dtype=torch.float64), torch.tensor([[0.0], [1.0]])
    codes = codes.double()
    oracle.check((torch.tensor([0]), torch.tensor([torch.inf]).double()), z, codes)
    with pytest.raises(AssertionError, match="not the distance of the chosen code"):
        oracle.check((torch.tensor([0]), torch.tensor([5.0]).double()), z, codes)
