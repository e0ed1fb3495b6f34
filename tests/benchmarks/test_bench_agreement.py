"""Two runs of a benchmark beside each other."""

import json

import pytest

from benchmarks import agreement
from vqvae_fast.bench import environment
from vqvae_fast.bench.interleave import summarise


def record(*ratios, **head):
    contenders = {"ours": {"times_slower_than_ours": summarise([1.0] * 3)._asdict()}}
    for number, rounds in enumerate(ratios):
        contenders[f"peer {number}"] = {"times_slower_than_ours": summarise(rounds)._asdict()}
    entry = {"shape": {"n": 8, "k": 4, "d": 2}, "data": "Gaussian", "contenders": contenders}
    return environment.describe("search", 1) | {"results": [entry]} | head


def written(folder, *records):
    paths = []
    for number, one in enumerate(records):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(one))
        paths.append(str(path))
    return paths


def test_a_median_within_the_first_run_s_rounds_agrees(tmp_path, capsys):
    near, out = [2.0, 2.1, 2.2], tmp_path / "out.json"
    paths = written(tmp_path, record(near), record([2.1, 2.15, 2.3]))
    assert agreement.main([*paths, "--json", str(out)]) == 0
    assert "1 of 1 ratios to ours agree" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert kept["agree"] == kept["ratios"] == 1
    assert kept["moved_most"] == pytest.approx(2.15 / 2.1)
    assert "Apart" not in out.with_suffix(".md").read_text()


def test_ratios_that_moved_are_listed(tmp_path, capsys):
    paths = written(
        tmp_path, record([2.0, 2.1, 2.2], [5.0] * 3), record([4.0, 4.1, 4.2], [5.0] * 3)
    )
    assert agreement.main(paths) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 ratios" in printed
    assert "(8, 4, 2) Gaussian: peer 0 | 2.1x (2-2.2)               | 4.1x (4-4.2)" in printed
    assert "peer 1 |" not in printed


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"machine": "another"}, "both runs must have one machine"),
        ({"benchmark": "sums"}, "both runs must have one benchmark"),
        ({"results": []}, "no shape and contender in common"),
    ],
)
def test_records_that_cannot_be_compared(tmp_path, capsys, other, message):
    assert agreement.main(written(tmp_path, record([2.0] * 3), record([2.0] * 3, **other))) == 2
    assert message in capsys.readouterr().err


def test_a_missing_record(tmp_path, capsys):
    assert agreement.main([str(tmp_path / "no.json"), str(tmp_path / "no.json")]) == 2
    assert "no.json" in capsys.readouterr().err
