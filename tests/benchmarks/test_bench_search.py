"""The search benchmark: a smoke run over every peer that is here, and what it refuses."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch

from benchmarks import search as command
from vqvae_fast.bench import environment, search
from vqvae_fast.bench.contest import InexactError
from vqvae_fast.bench.data import PUBLISHED, RESIDUAL_SHAPES, Shape, from_npz, gaussian
from vqvae_fast.bench.peers import OURS, SEARCH_PEERS
from vqvae_fast.bench.peers.base import SearchPeer, needs

SHAPE = Shape(96, 40, 8)


def test_smoke_run_of_every_peer(tmp_path, capsys):
    z, codebook = np.random.default_rng(0).standard_normal((2, 50, 6), dtype=np.float32)
    np.savez(tmp_path / "latents.npz", z=z, codebook=codebook[:30])
    out = tmp_path / "deep" / "search.json"
    arguments = ["--quick", "--shapes", "96,40,8", "--json", str(out)]
    command.main([*arguments, "--latents", str(tmp_path / "latents.npz")])

    record = json.loads(out.read_text())
    table = capsys.readouterr().out
    assert out.with_suffix(".md").read_text() in table
    assert [entry["data"] for entry in record["results"]] == ["Gaussian", "trained"]
    assert record["results"][0]["shape"] == {"n": 96, "k": 40, "d": 8}
    assert record["results"][1]["shape"] == {"n": 50, "k": 30, "d": 6}
    expected = {peer.name for peer in SEARCH_PEERS if peer.why_not("float32") is None}
    for entry in record["results"]:
        assert set(entry["contenders"]) == expected
        for name, line in entry["contenders"].items():
            assert line["violating_rows"] == 0.0, name
            assert line["seconds"]["median"] > 0
            assert name in table
    assert {peer.name for peer in SEARCH_PEERS} == expected | set(record["skipped"])
    for name, reason in record["skipped"].items():
        assert f"{name}: {reason}" in table
    memory = record["results"][0]["memory"]
    assert memory["beside_outputs"] is None or memory["beside_outputs"] <= memory["bound"]
    assert memory["bound"] == 40 * 8 * 4 + (16 << 20)


def test_results_carry_no_paths_or_host_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "SEARCH_PEERS", (OURS,))
    monkeypatch.setattr("sys.argv", ["search", "--json", str(tmp_path / "x.json")])
    out = ["--json", str(tmp_path / "x.json")]
    command.main(["--quick", "--shapes", "8,4,2", "--no-memory", *out])
    text = (tmp_path / "x.json").read_text()
    assert "python -m benchmarks.search --json x.json" in text
    assert str(tmp_path) not in text + capsys.readouterr().out


def test_absent_peer_is_skipped_with_its_reason(monkeypatch):
    absent = SearchPeer("absent", "", OURS.prepare, needs("no_such_module", "no-such-package"))
    monkeypatch.setattr(search, "SEARCH_PEERS", (OURS, absent))
    record = search.run([gaussian(SHAPE)], 1, 1, 0.0, with_memory=False)
    assert record["skipped"] == {
        "absent": "no-such-package is not installed (pip install vqvae_fast[bench])"
    }
    assert set(record["results"][0]["contenders"]) == {"ours"}
    table = search.markdown(environment.describe("search", 1) | record)
    assert "- absent: no-such-package is not installed" in table


def test_wrong_answer_of_ours_is_never_timed(monkeypatch):
    timed = []
    wrong = dataclasses.replace(OURS, prepare=_shifted(timed))
    monkeypatch.setattr(search, "OURS", wrong)
    monkeypatch.setattr(search, "SEARCH_PEERS", (wrong,))
    with pytest.raises(
        InexactError, match=r"of the rows of 'ours' at 96x40x8 \(Gaussian, float32\)"
    ):
        search.measure(gaussian(SHAPE), None, 1, 0.0)
    assert len(timed) == 1


def _entry(vectors, rounds):
    return search.entry(vectors, [search.measure(vectors, None, rounds, 0.0)])


def test_passes_are_pooled(monkeypatch):
    built = []
    late = SearchPeer("late", "", _prepared_slower_each_time(built))
    monkeypatch.setattr(search, "SEARCH_PEERS", (OURS, late))
    record = search.run([gaussian(SHAPE)], 1, 2, 0.0, with_memory=False, passes=3)
    (entry,) = record["results"]
    assert len(built) == 3  # anew in every pass
    seconds = entry["contenders"]["late"]["seconds"]
    assert len(seconds["rounds"]) == 6
    assert seconds["q75"] > 1.5 * seconds["q25"]  # what differs between passes is in the quartiles
    assert "2 interleaved rounds in each of 3 passes" in search.markdown(
        environment.describe("search", 1) | record
    )


def test_who_drops_out_in_a_later_pass_is_left_out():
    vectors = gaussian(SHAPE)
    once = search.Measured({"ours": [1.0], "slow": [5.0]}, [], {"ours": 0.0, "slow": 0.0}, {})
    again = search.Measured({"ours": [2.0]}, [], {"ours": 0.0, "slow": 0.0}, {"slow": "took 9 s"})
    entry = search.entry(vectors, [once, again])
    assert set(entry["contenders"]) == {"ours"}
    assert entry["contenders"]["ours"]["seconds"]["rounds"] == [1.0, 2.0]
    assert entry["skipped"] == {"slow": "took 9 s"}


def _prepared_slower_each_time(built):
    def prepare(z, codebook):
        built.append(len(built) + 1)
        call, pause = OURS.prepare(z, codebook), 0.02 * built[-1]

        def slow():
            time.sleep(pause)
            return call()

        return slow

    return prepare


def test_wrong_answer_of_a_peer_is_stated(monkeypatch):
    wrong = SearchPeer("wrong", "", _shifted([]))
    monkeypatch.setattr(search, "SEARCH_PEERS", (OURS, wrong))
    entry = _entry(gaussian(SHAPE), rounds=2)
    assert entry["contenders"]["wrong"]["violating_rows"] == 1.0
    assert entry["contenders"]["ours"]["violating_rows"] == 0.0
    assert entry["contenders"]["ours"]["share_of_peak"] is None
    assert entry["contenders"]["ours"]["times_slower_than_ours"]["rounds"] == [1.0, 1.0]


def test_peers_that_do_not_take_a_dtype_say_so():
    entry = _entry(gaussian(SHAPE, torch.bfloat16), rounds=1)
    assert entry["skipped"]["FAISS search"] == "does not take bfloat16"
    assert entry["contenders"]["ours"]["violating_rows"] == 0.0


@pytest.mark.parametrize("text", ["1,2", "1,2,x", "0,1,2", "1,2,3,4"])
def test_bad_shapes_are_refused(text):
    with pytest.raises(ValueError, match="three positive numbers N,K,D"):
        Shape.parse(text)


def test_published_shapes_have_names(capsys):
    assert Shape.parse("vqgan") == (768, 16384, 256)
    assert all(Shape.parse(name) == model.shape for name, model in PUBLISHED.items())
    assert RESIDUAL_SHAPES[Shape.parse("mimi")] == 32
    with pytest.raises(SystemExit):
        command.main(["--shapes", "vqgn"])
    assert "one of vqvae-cifar10, " in capsys.readouterr().err


@pytest.mark.slow
def test_trained_vectors_are_there_unless_they_are_left_out(monkeypatch, tmp_path):
    out = ["--json", str(tmp_path / "x.json"), "--no-memory", "--rounds", "1"]
    asked = []
    monkeypatch.setattr(search, "SEARCH_PEERS", (OURS,))
    monkeypatch.setattr(command, "SHAPES", (SHAPE,))

    def tiny(k, d, rows, dtype):
        asked.append((rows, k, d))
        return gaussian(SHAPE, dtype)._replace(source="trained")

    monkeypatch.setattr(command.trained, "trained", tiny)
    record = command.main(out)
    assert [entry["data"] for entry in record["results"]] == ["Gaussian", *["trained"] * 5]
    assert asked == [(16384, 512, 64), *((16384, 8192, d) for d in (32, 64, 128, 256))]
    for options in (["--no-trained"], ["--quick"], ["--shapes", "96,40,8"]):
        assert {entry["data"] for entry in command.main([*out, *options])["results"]} == {
            "Gaussian"
        }
    monkeypatch.setattr(command.trained, "unavailable", lambda: "no photographs")
    with pytest.raises(SystemExit):
        command.main(out)


def test_bad_latents_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.zeros((3, 2)))
    with pytest.raises(
        ValueError, match=r"must hold arrays z and codebook, \['codebook'\] missing"
    ):
        from_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", z=np.zeros((3, 2)), codebook=np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"z must be \[N, D\] and codebook \[K, D\]"):
        from_npz(tmp_path / "b.npz")


def _shifted(calls: list[int]):
    """A search that is wrong in every row, and counts its calls."""

    def prepare(z, codebook):
        right = OURS.prepare(z, codebook)

        def call():
            calls.append(1)
            return (right() + 1) % len(codebook)

        return call

    return prepare
