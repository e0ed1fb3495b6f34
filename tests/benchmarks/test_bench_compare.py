"""Two revisions side by side: what is called slower, and what cannot be compared."""

import shutil

import pytest

from benchmarks import compare_revisions
from benchmarks.compare_revisions import ROOT, Line, compare, main, report
from vqvae_fast.bench.interleave import summarise

CASE = "segment sum 2048x512x64"


@pytest.fixture
def slower_tree(tmp_path):
    """A copy of the package whose segment sum takes fifty milliseconds more."""
    package = tmp_path / "vqvae_fast"
    shutil.copytree(ROOT / "vqvae_fast", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "__init__.py").open("a") as file:
        file.write(
            "\nimport time\n_quick = segment_sum\n"
            "def segment_sum(*given):\n    time.sleep(0.05)\n    return _quick(*given)\n"
        )
    return tmp_path


@pytest.mark.slow
def test_a_quicker_tree_is_found(slower_tree):
    lines, missing = compare(slower_tree, ROOT, 2, CASE)
    assert missing == []
    assert lines[CASE].verdict == "faster"
    assert "| faster" in report(lines, missing)


@pytest.mark.slow
def test_a_slower_tree_fails(slower_tree, monkeypatch, capsys):
    monkeypatch.setattr(compare_revisions, "ROOT", slower_tree)
    monkeypatch.setattr(compare_revisions, "_changed", lambda: True)
    assert main(["--base-tree", str(ROOT), "--rounds", "2", "--only", CASE]) == 1
    printed = capsys.readouterr().out
    assert f"slower than the base: {CASE}" in printed
    assert "changes that are not committed" in printed


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0], "same"),
        ([1.2, 1.3, 1.2, 1.4], "slower"),
        ([0.8, 0.9, 0.7, 0.8], "faster"),
        ([0.5, 1.5, 1.0, 2.0], "same"),  # noise
        ([1.03, 1.04, 1.03, 1.04], "same"),  # steady, and not worth a word
    ],
)
def test_the_verdict_needs_three_quarters_of_the_rounds(rounds, verdict):
    one = summarise([1.0] * len(rounds))
    assert Line(one, one, summarise(rounds)).verdict == verdict


def test_what_the_base_lacks_is_named(monkeypatch, tmp_path):
    times = {tmp_path: {"a": 1.0}, ROOT: {"a": 2.0, "b": 1.0}}
    monkeypatch.setattr(compare_revisions, "measured", lambda tree, only: times[tree])
    lines, missing = compare(tmp_path, ROOT, 3)
    assert list(lines) == ["a"]
    assert missing == ["b"]
    assert "not in the base: b" in report(lines, missing)


@pytest.mark.slow
def test_what_cannot_be_compared_says_so(tmp_path, capsys):
    assert main(["no-such-revision"]) == 2
    assert "git worktree add" in capsys.readouterr().err
    assert main(["--base-tree", str(tmp_path), "--only", CASE]) == 2
    assert "benchmarks.compare_revisions: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
