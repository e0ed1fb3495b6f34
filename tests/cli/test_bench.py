"""``vqvae-fast bench``: the table, the JSON, and what it refuses."""

import dataclasses
import json

import pytest
from test_cli import call

from vqvae_fast.bench import layer, residual, search
from vqvae_fast.bench.contest import InexactError
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers import FROZEN_RESIDUAL_PEERS, OURS, torch_addmm
from vqvae_fast.bench.peers.base import SearchPeer, needs
from vqvae_fast.bench.residual import Stages
from vqvae_fast.cli import bench

ABSENT = SearchPeer("absent", "", OURS.prepare, needs("no_such_module", "no-such-package"))
SMALL = ["--shape", "128,40,8", "--rounds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def few_peers(monkeypatch):
    monkeypatch.setattr(bench, "SEARCH_PEERS", (OURS, torch_addmm.PEER, ABSENT))
    monkeypatch.setattr(layer, "LAYER_PEERS", layer.LAYER_PEERS[:2])


def test_the_table_and_the_json_hold_all_figures(tmp_path, capsys):
    assert call("bench", *SMALL, "--json", tmp_path / "bench.json") == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "bench.json").read_text())
    assert "search: 128 vectors, 40 codes of length 8" in printed
    assert "forward and backward: 128 vectors, 40 codes of length 8" in printed
    (searched,), (layered,) = record["search"]["results"], record["layer"]["results"]
    assert set(searched["contenders"]) == {"ours", "torch addmm+argmin"}
    assert set(layered["contenders"]) == {"ours (EMA)", "ours (gradient)"}
    for name in (*searched["contenders"], *layered["contenders"]):
        assert f"  {name} " in printed
    ratio = searched["contenders"]["torch addmm+argmin"]["times_slower_than_ours"]
    assert f"ours is {ratio['median']:.3g}x" in printed or ratio["median"] >= 100
    assert "absent: no-such-package is not installed (pip install vqvae_fast[bench])" in printed
    assert record["threads"] == 1
    assert record["command"].startswith("vqvae-fast")


def test_few_vectors_are_searched_in_a_packed_codebook(tmp_path, capsys):
    few = ["--shape", "1,40,8", "--shape", "126,40,8", *SMALL[2:]]
    assert call("bench", *few, "--json", tmp_path / "bench.json") == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "bench.json").read_text())
    (entry,) = record["few"]["results"]
    assert entry["shape"] == {"n": 1, "k": 40, "d": 8}
    assert "search, codebook prepared: 1 vector, 40 codes of length 8" in printed
    assert next(iter(entry["contenders"])) == "ours, packed"
    assert entry["contenders"]["ours, packed"]["times_slower_than_ours"]["median"] == 1
    assert {"ours", "torch addmm+argmin, kept norms"} < set(entry["contenders"])
    assert "  ours, packed is " in printed
    assert record["residual"]["results"] == []


def test_stages_are_measured_by_default(monkeypatch, tmp_path, capsys):
    for name in ("SEARCH_SHAPES", "LAYER_SHAPES", "FEW_SHAPES"):
        monkeypatch.setattr(bench, name, (Shape(5, 40, 8),))
    monkeypatch.setattr(bench, "RESIDUAL_SHAPES", (Stages(Shape(5, 40, 8), 3),))
    assert call("bench", *SMALL[2:], "--json", tmp_path / "bench.json") == 0
    (entry,) = json.loads((tmp_path / "bench.json").read_text())["residual"]["results"]
    assert entry["stages"] == 3
    assert set(entry["contenders"]) == {peer.name for peer in FROZEN_RESIDUAL_PEERS}
    title = "residual quantization, codebooks prepared: 3 stages, 5 vectors, 40 codes of length 8"
    assert title in capsys.readouterr().out


def test_a_wrong_stage_of_ours_is_an_error(monkeypatch):
    ours = FROZEN_RESIDUAL_PEERS[0]

    def spoiled(*given):
        call = ours.prepare(*given)
        return lambda: (call() + 1) % 40

    wrong = dataclasses.replace(ours, prepare=spoiled)
    monkeypatch.setattr(residual, "FROZEN_RESIDUAL_PEERS", (wrong,))
    with pytest.raises(InexactError, match="of 'ours, packed' at 3 stages of 5x40x8"):
        residual.compare(Stages(Shape(5, 40, 8), 3), 1, 0.0)


def test_json_on_stdout_is_all_there_is(capsys):
    assert call("bench", *SMALL, "--json", "-") == 0
    assert set(json.loads(capsys.readouterr().out)) > {"search", "layer", "cpu", "versions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "128,40"], "must be three positive numbers N,K,D or one of vqvae-cifar10"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--threads", "0"], "0 is not in the range x>=1"),
        (["--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, message, capsys):
    assert call("bench", *arguments) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_is_not_replaced_unasked(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("mine")
    assert call("bench", *SMALL, "--json", tmp_path / "bench.json") == 1
    assert "exists and is not replaced without --overwrite" in capsys.readouterr().err
    assert (tmp_path / "bench.json").read_text() == "mine"


def test_a_wrong_answer_of_ours_is_an_error(monkeypatch, capsys):
    wrong = SearchPeer("ours", "", lambda z, codebook: lambda: z.new_zeros(len(z)).long())
    monkeypatch.setattr(search, "OURS", wrong)
    monkeypatch.setattr(bench, "SEARCH_PEERS", (wrong,))
    assert call("bench", *SMALL) == 1
    assert "nothing more was measured" in capsys.readouterr().err


def test_each_table_is_printed_before_the_next_shape_is_measured(monkeypatch, capsys):
    printed, original = [], search.measure

    def measure(*arguments):
        printed.append(capsys.readouterr().out)
        return original(*arguments)

    monkeypatch.setattr(search, "measure", measure)
    assert call("bench", *SMALL, "--shape", "196,33,4") == 0
    before_first, before_second = printed
    assert "cores, kernels:" in before_first
    assert "search: 128 vectors" in before_second
    # A reason that holds at every shape is told once.
    rest = capsys.readouterr().out
    assert "search: 196 vectors" in rest
    assert (before_second + rest).count("absent: no-such-package") == 1
