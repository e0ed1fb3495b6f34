"""What is not released, and what a release's checksums say."""

import shutil
import subprocess
import sys

import pytest

from tools import elsewhere
from tools.environments import other_pythons
from tools.release import main, version, why_no_release, write_checksums
from tools.wheel import ROOT, run

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")


@pytest.fixture
def tree(tmp_path):
    """A repository of one commit, with this version."""
    (tmp_path / "vqvae_fast").mkdir()
    shutil.copy(ROOT / "vqvae_fast" / "_version.py", tmp_path / "vqvae_fast")
    author = ("-c", "user.name=A", "-c", "user.email=a@b")
    for words in (("init", "--quiet"), ("add", "."), (*author, "commit", "--quiet", "-m", "One")):
        run("git", *words, cwd=tmp_path)
    return tmp_path


def test_a_commit_with_the_versions_tag_is_released(tree):
    run("git", "tag", f"v{version()}", cwd=tree)
    assert why_no_release(tree) is None


def test_a_commit_without_a_tag_is_not_released(tree):
    assert why_no_release(tree) == f"the commit must have the tag v{version()}, got none"


def test_a_tag_of_another_version_is_not_enough(tree):
    run("git", "tag", "v99", cwd=tree)
    assert why_no_release(tree) == f"the commit must have the tag v{version()}, got v99"


@pytest.mark.parametrize("name", ["new.py", "vqvae_fast/_version.py"])
def test_a_tree_with_changes_is_not_released(tree, name):
    run("git", "tag", f"v{version()}", cwd=tree)
    with (tree / name).open("a") as file:
        file.write("# changed\n")
    reason = why_no_release(tree)
    assert reason.startswith("the tree must have no changes and no new files")
    assert name in reason


def test_the_command_makes_nothing_where_it_refuses(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.release.why_no_release", lambda: why_no_release(tree))
    with pytest.raises(SystemExit, match=r"No release is made: the commit must have the tag"):
        main(["--out", str(tmp_path / "dist")])
    assert not (tmp_path / "dist").exists()


def test_a_release_is_alone_in_its_folder(tmp_path):
    (tmp_path / "vqvae_fast-0.0.1.tar.gz").touch()
    with pytest.raises(SystemExit, match="must be empty"):
        main(["--rehearsal", "--out", str(tmp_path)])


@pytest.fixture
def pythons(tmp_path, monkeypatch):
    """A PATH with this Python, one that runs if pyenv is told the version, and one that fails."""
    this = f"python3.{sys.version_info.minor}"
    for name, script in {
        this: "echo this",
        "python3.18": "echo /opt/of-$PYENV_VERSION/bin/python",
        "python3.19": "exit 127",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_other_pythons_are_those_that_run(pythons, monkeypatch, capsys):
    assert other_pythons() == ["/opt/of-3.18/bin/python"]
    monkeypatch.setattr(elsewhere, "why_not", lambda python: None)
    elsewhere.main([])
    assert capsys.readouterr().out == "The wheel is tried on /opt/of-3.18/bin/python, too.\n"


def test_a_torch_that_cannot_be_fetched_is_said_beforehand(pythons, monkeypatch):
    monkeypatch.setattr(elsewhere, "NEEDED_GB", 0)
    script = "echo some words >&2; echo no index can be reached >&2; exit 1"
    for name in ("python3.18", "another"):
        (pythons / name).write_text(
            f"#!/bin/sh\n[ $1 = -c ] && echo {pythons}/another || {{ {script}; }}\n"
        )
        (pythons / name).chmod(0o755)
    with pytest.raises(
        SystemExit, match=r"torch==2\.10\.\* cannot be fetched .* index can be reached"
    ):
        elsewhere.main([])


def test_a_full_disk_is_said_beforehand(pythons, monkeypatch):
    monkeypatch.setattr(elsewhere, "NEEDED_GB", 10**9)
    with pytest.raises(SystemExit, match=r"takes 1000000000 GB in .*, which has \d+ left"):
        elsewhere.main([])


def test_a_try_on_another_python_cannot_pass_without_one(pythons):
    (pythons / "python3.18").unlink()
    with pytest.raises(SystemExit, match=r"The PATH has no Python from 3\.10 on but 3\."):
        elsewhere.main(["some.whl"])


def test_a_failing_command_says_what_it_has_said():
    with pytest.raises(SystemExit, match=r"status 3:(.|\n)*it broke"):
        run(sys.executable, "-c", "print('it broke'); raise SystemExit(3)")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not there")
def test_checksums_are_those_of_the_files(tmp_path):
    files = [tmp_path / "b", tmp_path / "a"]
    for file in files:
        file.write_text(file.name)
    write_checksums(files, tmp_path)
    check = ["sha256sum", "--check", "SHA256SUMS"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "a: OK\nb: OK\n"
    files[0].write_text("other")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode != 0
