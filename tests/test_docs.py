"""The examples on the documentation's pages run, and a fault on a page fails the build of the site.

All ``python`` blocks of a page run in their order and share their names, as a reader would type
them. A block whose first line is a comment "Needs ..." cannot run in a test: its imports are tried,
and the test is reported as skipped with this line.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqvae_fast.acceleration.known import KNOWN

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"# (Needs .*)\n")


class Example:
    """A block of code on a page."""

    def __init__(self, page, match):
        self.page = page
        self.text = match[1]
        self.line = match.string[: match.start(1)].count("\n")
        needs = NEEDS.match(self.text)
        self.needs = needs and needs[1]
        self.name = f"{page.relative_to(ROOT)}:{self.line}"

    def run(self, names, imports_alone=False):
        """Run the block; a traceback shows the line of the page."""
        tree = ast.parse("\n" * self.line + self.text, str(self.page))
        if imports_alone:
            tree.body = [x for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
        exec(compile(tree, str(self.page), "exec"), names)


EXAMPLES = [
    Example(page, match)
    for page in sorted(DOCS.rglob("*.md"))
    for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
]
RUNNABLE = [example for example in EXAMPLES if not example.needs]
MARKED = [example for example in EXAMPLES if example.needs]


@pytest.fixture(autouse=True)
def recipes_are_put_back():
    before = list(KNOWN)
    yield
    KNOWN[:] = before


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def examples_of(page):
    return [example for example in RUNNABLE if example.page.name == page]


def run_all(examples):
    if any("transformers" in example.text for example in examples):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {"__name__": "example"}
    for example in examples:
        example.run(names)


@pytest.mark.parametrize("page", sorted({example.page.name for example in RUNNABLE}))
def test_examples_run(page, in_a_folder):
    run_all(examples_of(page))


@pytest.mark.parametrize("example", MARKED, ids=lambda example: example.name)
def test_marked_examples_import_what_there_is(example):
    example.run({}, imports_alone=True)
    pytest.skip(f"{example.name}: {example.needs}")


def test_no_block_of_code_is_overlooked():
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert len(re.findall(r"^\s*(```|~~~|:::) *\{?(code-block\}? *)?py", text, re.M)) == len(
        EXAMPLES
    )


def test_accelerate_prints_the_report_of_the_page(capsys):
    first = examples_of("models.md")[0]
    run_all([first])
    page = first.page.read_text(encoding="utf-8")
    (report,) = re.findall(r"```\n(vqvae_fast accelerates.*?)```", page, re.DOTALL)
    assert capsys.readouterr().out == report


def test_every_script_is_a_page():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = {path.stem for path in (DOCS / "examples").glob("*.md")} - {"index"}
    assert pages == scripts
    for name in scripts:
        page = (DOCS / "examples" / f"{name}.md").read_text(encoding="utf-8")
        assert f"{{literalinclude}} ../../examples/{name}.py" in page


FAULTS = {
    "[a page](missing.md)": "'missing.md'",
    "[a heading](#no-such-heading)": "'no-such-heading'",
    "{func}`vqvae_fast.no_such_function`": "py:func reference target not found",
    "![a picture](missing.png)": "missing.png",
    "```{include} missing.md\n```": "missing.md",
    "```{command} no-such-command\n```": "vqvae-fast has no command no-such-command",
}


@pytest.mark.slow
def test_faults_of_a_page_fail_the_build(tmp_path):
    pytest.importorskip("sphinx", reason="`make docs` installs Sphinx")
    (tmp_path / "index.md").write_text("# Faults\n\n" + "\n\n".join(FAULTS), encoding="utf-8")
    settings = ("-D", "root_doc=index", "-D", "include_patterns=index.md")
    build = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"),
            *("--conf-dir", str(DOCS), *settings, str(tmp_path), str(tmp_path / "site")),
        ],
        capture_output=True,
        text=True,
    )
    assert build.returncode != 0
    for fault in FAULTS.values():
        assert fault in build.stderr
    for name in ("nearest_code", "nn.perplexity", "training.train"):
        assert f"vqvae_fast.{name} is public, but no page of docs/api" in build.stderr
