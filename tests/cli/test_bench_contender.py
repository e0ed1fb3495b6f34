"""``vqvae-fast bench --contender``: a search of the user's own beside ours."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from test_cli import call

from vqvae_fast.bench import contest
from vqvae_fast.bench.contender import residual_contender, search_contender
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import OURS
from vqvae_fast.bench.peers.base import SearchPeer
from vqvae_fast.bench.search import measure

SMALL = ["--rounds", "2", "--threads", "1", "--no-peers", "--shape", "128,40,8"]

SEARCHES = """
import torch

from vqvae_fast.bench.peers.base import ResidualPeer, SearchPeer
import neighbour

right = lambda z, codebook: lambda: torch.cdist(z, codebook).argmin(dim=1)

def farthest(z, codebook):
    return lambda: torch.cdist(z, codebook).argmax(dim=1)

def fails_to_prepare(z, codebook):
    raise ValueError("no such\\nthing")

def fails_to_run(z, codebook):
    return lambda: z[len(z)]

def writes(z, codebook):
    return lambda: (z.mul_(2), z[:, 0].long())[1]

def returns_floats(z, codebook):
    return lambda: z[:, 0]

def returns_nothing(z, codebook):
    return lambda: None

def returns_a_tuple(z, codebook):
    return lambda: torch.cdist(z, codebook).min(dim=1)

def prepares_no_call(z, codebook):
    return torch.cdist(z, codebook).argmin(dim=1)

def fails_later(z, codebook):
    calls = []
    def search():
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("too often")
        return torch.cdist(z, codebook).argmin(dim=1)
    return search

def writes_later(z, codebook):
    calls = []
    def search():
        calls.append(1)
        found = torch.cdist(z, codebook).argmin(dim=1)
        if len(calls) > 2:
            z.add_(1)
        return found
    return search

def out_of_range(z, codebook):
    return lambda: torch.full((len(z),), len(codebook))

def stages(z, codebooks):
    def call():
        residual, codes = z, []
        for codebook in codebooks:
            codes.append(torch.cdist(residual, codebook).argmin(dim=1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1)
    return call

described = SearchPeer("mine", "in words", right, dtypes=("float32",))
residual = ResidualPeer("my stages", "in words", stages)
named_as_ours = SearchPeer("ours, too", "", right)
number = 3
"""


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "my_searches.py").write_text(SEARCHES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["my_searches.py:right", "my_searches:right"])
def test_a_contender_is_a_row_of_each_table(place, searches, capsys):
    assert call("bench", *SMALL, "--contender", place, "--json", "out.json") == 0
    printed = capsys.readouterr().out
    record = json.loads((searches / "out.json").read_text())
    (searched,), few = record["search"]["results"], record["few"]["results"]
    assert list(searched["contenders"]) == ["ours", "ours, packed", place]
    assert searched["contenders"][place]["violating_rows"] == 0
    assert len(searched["contenders"][place]["seconds"]["rounds"]) == 2
    assert few == []  # 128 rows are not few
    assert record["residual"]["results"] == record["layer"]["results"] == []
    assert re.search(rf"^  {re.escape(place)} .* ms .* GFLOP/s .* ours is ", printed, re.MULTILINE)


def test_few_vectors_and_stages(searches, capsys):
    few = [*SMALL[:-1], "13,40,8", "--stages", "3,13,40,8", "--json", "out.json"]
    own = ["--contender", "my_searches.py:right", "--residual-contender", "my_searches.py:residual"]
    assert call("bench", *few, *own) == 0
    record = json.loads((searches / "out.json").read_text())
    assert "my_searches.py:right" in record["few"]["results"][0]["contenders"]
    (stages,) = record["residual"]["results"]
    assert stages["stages"] == 3
    assert stages["contenders"]["my stages"]["violating_rows"] == 0
    assert "my stages" in capsys.readouterr().out


def test_stages_alone_leave_the_searches_out(searches):
    own = ["--stages", "2,5,40,8", "--residual-contender", "my_searches.py:stages"]
    assert call("bench", *SMALL[:-2], *own, "--json", "out.json") == 0
    record = json.loads((searches / "out.json").read_text())
    assert record["search"]["results"] == record["few"]["results"] == []
    assert "my_searches.py:stages" in record["residual"]["results"][0]["contenders"]


def test_a_wrong_contender_is_shown_with_its_share(searches, capsys):
    assert call("bench", *SMALL, "--contender", "my_searches.py:farthest") == 0
    assert re.search(r"my_searches.py:farthest .*, 100 % wrong", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails_to_prepare", r"raised ValueError: no such thing \(my_searches.py, line 13\)"),
        ("fails_to_run", r"raised IndexError: .*\(my_searches.py, line 16\)"),
        ("writes", "wrote to its inputs"),
        ("writes_later", "wrote to its inputs"),
        ("fails_later", r"raised RuntimeError: too often \(my_searches.py, line 38\)"),
        ("returns_a_tuple", "must return a tensor, got torch.return_types.min"),
        ("prepares_no_call", "prepares no call: the function must return one, got torch.Tensor"),
        ("returns_floats", r"returned no answer: indices must be int64 \[N=128\], got"),
        ("returns_nothing", "must return a tensor, got NoneType"),
        ("out_of_range", "returned no answer: indices must be from 0 to K - 1 = 39"),
    ],
)
def test_a_contender_without_an_answer_is_left_out(name, reason, searches, capsys):
    place = f"my_searches.py:{name}"
    others = ["--contender", "my_searches.py:right", "--json", "out.json"]
    assert call("bench", *SMALL, "--contender", place, *others) == 0
    record = json.loads((searches / "out.json").read_text())
    (searched,) = record["search"]["results"]
    assert list(searched["contenders"]) == ["ours", "ours, packed", "my_searches.py:right"]
    assert re.search(reason, searched["skipped"][place], re.DOTALL)
    # The others have their inputs, although one contender wrote to its own.
    assert searched["contenders"]["my_searches.py:right"]["violating_rows"] == 0
    assert place in capsys.readouterr().out


def test_an_answer_that_becomes_wrong_is_seen():
    calls = []

    def prepare(z, codebook):
        def search():
            calls.append(1)
            right = torch.cdist(z, codebook).argmin(dim=1)
            return right if len(calls) == 1 else (right + 1) % len(codebook)

        return search

    peers = [OURS, SearchPeer("racing", "", prepare)]
    measured = measure(gaussian(Shape(50, 40, 8)), None, 1, 0.0, peers)
    assert measured.violating["racing"] > 0.5


def test_an_answer_of_ours_that_becomes_wrong_ends_the_benchmark():
    calls = []

    def prepare(z, codebook):
        def search():
            calls.append(1)
            right = torch.cdist(z, codebook).argmin(dim=1)
            return right if len(calls) == 1 else (right + 1) % len(codebook)

        return search

    with pytest.raises(contest.InexactError, match="rows of 'ours' at 50x40x8"):
        measure(gaussian(Shape(50, 40, 8)), None, 1, 0.0, [SearchPeer("ours", "", prepare)])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_searches", "a contender must be MODULE:FUNCTION or FILE.py:FUNCTION, got 'my_search"),
        ("my_searches:", "a contender must be MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("nowhere.py:right", "there is no file nowhere.py to take a contender from"),
        ("nowhere:right", "there is no module nowhere to take a contender from"),
        ("my_searches.py:wrong", "my_searches.py has no function wrong to measure"),
        (
            "my_searches.py:number",
            "must be a function, my_searches.py:number has type int",
        ),
        ("my_searches.py:residual", "is a residual quantization, a search was expected"),
        ("my_searches.py:named_as_ours", "must not begin with 'ours', got 'ours, too'"),
    ],
)
def test_a_contender_that_cannot_be_loaded(place, message, searches, capsys):
    assert call("bench", *SMALL, "--contender", place) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package\n", "raised ModuleNotFoundError: No module named 'no_such_pack"),
        ("def (:\n", "it raised SyntaxError: invalid syntax"),
        ("\n1 / 0\n", r"ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("from . import neighbour\n", "name a file of a package as MODULE:FUNCTION"),
    ],
)
@pytest.mark.parametrize("module", ["broken", "broken.py"])
def test_a_module_that_cannot_be_imported_says_why(text, message, module, searches, monkeypatch):
    (searches / "broken.py").write_text(text)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ValueError, match=rf"{module} cannot be imported: .*{message}"):
        search_contender(f"{module}:right")


def test_shapes_that_are_named_are_always_measured(searches):
    own = ["--contender", "my_searches.py:right", "--stages", "2,5,40,8", "--json", "out.json"]
    assert call("bench", *SMALL, *own) == 0
    record = json.loads((searches / "out.json").read_text())
    assert len(record["search"]["results"]) == len(record["residual"]["results"]) == 1


def test_a_search_is_no_residual_quantization(searches):
    with pytest.raises(ValueError, match="is a search, a residual quantization was expected"):
        residual_contender("my_searches.py:described")


@pytest.mark.parametrize("text", ["3,13,40", "0,13,40,8", "3,13,40,8,1", "a,13,40,8"])
def test_stages_are_four_numbers(text, capsys):
    assert call("bench", *SMALL, "--stages", text) == 2
    assert "stages must be four positive numbers Q,N,K,D; got" in capsys.readouterr().err


def test_a_dtype_that_a_contender_does_not_take(searches, capsys):
    own = ["--contender", "my_searches.py:described", "--dtype", "bfloat16"]
    assert call("bench", *SMALL, *own) == 0
    assert "mine: does not take bfloat16" in capsys.readouterr().out


def test_charts(searches, capsys):
    own = ["--contender", "my_searches.py:right", "--charts", "charts"]
    assert call("bench", *SMALL, *own) == 0
    drawn = sorted(path.name for path in (searches / "charts").iterdir())
    assert "speed_up.png" in drawn
    assert call("bench", *SMALL, *own) == 1
    error = capsys.readouterr().err
    assert "speed_up.png exists and is not replaced without --overwrite" in error


def test_charts_go_to_a_folder(searches, capsys):
    assert call("bench", *SMALL, "--charts", "my_searches.py") == 1
    assert "my_searches.py is a file, the name of a folder was expected" in capsys.readouterr().err
