"""A quick sweep: its record and tables are complete."""

import json

import pytest

from benchmarks import sweep


@pytest.mark.slow
def test_a_quick_sweep_has_all_figures(tmp_path, capsys):
    out = tmp_path / "sweep.json"
    sweep.main(["--quick", "--threads", "1", "--json", str(out)])
    record = json.loads(out.read_text())
    printed = capsys.readouterr().out
    (swept,) = record["sweeps"]
    searches = {peer.name for peer in sweep.SEARCHES if peer.why_not("float32") is None}
    layers = {peer.name for peer in sweep.LAYERS if peer.unavailable() is None}
    for kind, expected in (("search", searches), ("layer", layers)):
        assert [entry["shape"]["k"] for entry in swept[kind]] == [16, 32, 64]
        for entry in swept[kind]:
            assert set(entry["contenders"]) == expected
            for line in entry["contenders"].values():
                assert line["seconds"]["median"] > 0
                assert "peak_memory" in line
        assert set(sweep.series(swept, kind, "seconds")) == expected
        assert f"## {kind}, ms, over the codes" in printed
    assert "| grows as |" in printed
    assert out.with_suffix(".md").read_text() in printed


def test_the_sweeps_grow_one_size():
    for swept in sweep.SWEEPS:
        sizes = [shape._asdict() for shape in swept.shapes]
        assert [size[swept.axis] for size in sizes] == sorted({size[swept.axis] for size in sizes})
        for other in {"n", "k", "d"} - {swept.axis}:
            assert len({size[other] for size in sizes}) == 1
