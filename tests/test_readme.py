"""The README: its examples run, what it points to is there."""

import ast
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from vqvae_fast.bench.data import SEARCH_SHAPES, Shape

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
EXAMPLES, OF_SCALING = (
    re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in (README, SCALING)
)


@pytest.mark.parametrize("call", ["VectorQuantize(", "nearest_code(", "train("])
def test_there_is_an_example_for_each_kind_of_user(call):
    assert any(call in example for example in EXAMPLES)


FOLDERS = ("", "benchmarks", "csrc", "tests", "tests/fuzz")
PAGES = [
    ROOT / "CONTRIBUTING.md",
    *(ROOT / folder / "README.md" for folder in FOLDERS),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_point_to_files_and_headings(page, link):
    if "://" in link:
        return
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.is_file()
    if anchor:
        heads = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
        assert anchor in anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)) <= set(targets)
    for name in re.findall(r"python -m\s+(vqvae_fast|benchmarks)\.([\w.]+)", text):
        module = ROOT.joinpath(name[0], *name[1].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), name
    for command in re.findall(r"vqvae-fast ([a-z]+)", text):
        assert (ROOT / "vqvae_fast" / "cli" / f"{command}.py").is_file(), command


@pytest.mark.parametrize("example", [*EXAMPLES, *OF_SCALING])
def test_examples_import_what_there_is(example):
    kinds = (ast.Import, ast.ImportFrom)
    imports = [node for node in ast.parse(example).body if isinstance(node, kinds)]
    assert imports
    for node in imports:
        exec(compile(ast.Module([node], []), "README.md", "exec"), {})


def test_the_first_example_runs():
    names = {"x": torch.randn(2, 5, 256)}
    exec(EXAMPLES[0], names)
    assert names["quantized"].shape == names["x"].shape


def test_the_module_example_runs():
    lines = next(e for e in EXAMPLES if "VectorQuantizer(" in e).splitlines()
    users_files = ("from_reference(", "load_quantizer(")
    runnable = [line for line in lines if not any(call in line for call in users_files)]
    names = {"z": torch.randn(2, 64, 4, 4), "x": torch.randn(2, 5, 256)}
    exec("\n".join(runnable), names)
    assert names["z_q"].shape == names["z"].shape
    assert names["min_encodings"].shape == (32, 512)


def test_the_ops_example_runs():
    names = {
        "z": torch.randn(20, 8),
        "codebook": torch.randn(512, 8),
        "codebooks": torch.randn(4, 512, 8),
    }
    exec(next(e for e in EXAMPLES if "nearest_code(" in e), names)
    assert names["sums"].shape == (512, 8)


RESULTS = ROOT / "benchmarks" / "results" / "amd-epyc-zen5-2c"
PEERS = (
    *("torch addmm+argmin", "torch cdist+argmin", "torch.compile"),
    *("FAISS search", "scikit-learn"),
)


def quoted(number, unit=""):
    """A figure as the tables give it: three digits, ratios two."""
    digits = 2 if unit == "x" else 3
    short = f"{number:.0f}" if number >= 10 ** (digits - 1) else f"{number:#.{digits}g}"
    return short.rstrip(".") + unit


def rows_below(head):
    """The rows of the table in docs/performance.md whose head begins so."""
    lines = PERFORMANCE.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(head)) + 2
    return lines[begin : lines.index("", begin)]


def test_the_search_table_is_what_was_measured():
    record = json.loads((RESULTS / "search.json").read_text())
    expected = []
    for entry in record["results"]:
        trained = entry["data"] == "trained" and entry["shape"]["k"] == 8192
        if not (trained or Shape(**entry["shape"]) in SEARCH_SHAPES):
            continue  # search.md has them all
        shape = ", ".join(str(size) for size in entry["shape"].values())
        lines = entry["contenders"]
        ratios = [lines[peer]["times_slower_than_ours"]["median"] for peer in PEERS]
        cells = (
            shape if entry["data"] == "Gaussian" else f"{shape}, {entry['data']}",
            quoted(lines["ours"]["seconds"]["median"] * 1e3),
            f"{lines['ours']['share_of_peak']:.0%}".replace("%", " %"),
            *(quoted(ratio, "x") for ratio in ratios),
        )
        expected.append("| " + " | ".join(cells) + " |")
    assert rows_below("| N, K, D | ours, ms") == expected


def test_the_summary_of_all_shapes_is_what_was_measured():
    record = json.loads((RESULTS / "search.json").read_text())
    ratios = [
        {name: line["times_slower_than_ours"]["median"] for name, line in lines.items()}
        for lines in (entry["contenders"] for entry in record["results"])
    ]
    of_faiss = [r["FAISS search"] for r in ratios if "FAISS search" in r]
    faiss = statistics.geometric_mean(of_faiss)
    least = min(ratio for r in ratios for name, ratio in r.items() if name != "ours")
    assert (
        f"{len(of_faiss)} shapes, among them those of published models, it is {quoted(faiss, 'x')} "
        f"as fast as FAISS in the geometric mean, and at least {quoted(least, 'x')} as fast "
        "as any peer."
    ) in " ".join(README.split())


def test_the_range_of_modules_is_what_was_measured():
    steps = json.loads((RESULTS / "drop_in.json").read_text())["results"]
    faster = [entry["times_faster"]["median"] for entry in steps]
    ours, peers = zip(*(entry["peak_memory"].values() for entry in steps), strict=True)
    smaller = [peer / own for own, peer in zip(ours, peers, strict=True)]
    assert (
        f"is {min(faster):.0f} to {max(faster):.0f} times as fast as that of "
        f"vector-quantize-pytorch 1.32 and needs {min(smaller):.0f} to {max(smaller):.0f} times "
        "less memory"
    ) in " ".join(README.split())


def test_the_table_of_modules_is_what_was_measured():
    steps = json.loads((RESULTS / "drop_in.json").read_text())["results"]
    expected = []
    for entry in steps:
        ours, peer = entry["peak_memory"].values()
        times = [quoted(timing["median"] * 1e3) for timing in entry["seconds"].values()]
        cells = (
            f"{entry['configuration']}: {', '.join(map(str, entry['shape'].values()))}",
            *times,
            quoted(entry["times_faster"]["median"], "x"),
            quoted(peer / ours, "x"),
        )
        expected.append("| " + " | ".join(cells) + " |")
    assert rows_below("| module: N, K, D") == expected


def test_the_tables_of_scaling_are_what_was_measured():
    tables = (RESULTS / f"{name}.md" for name in ("large_codebooks", "sharded"))
    measured = [line for table in tables for line in table.read_text().splitlines()]
    quoted_rows = [line for line in SCALING.splitlines() if line.startswith(("| 32 ", "| 2048,"))]
    assert len(quoted_rows) == 5 + 6
    assert set(quoted_rows) <= set(measured)


ALIVE = ROOT / "benchmarks" / "results" / "amd-epyc-zen4-2c" / "alive.json"


def test_what_large_codebooks_bring_is_what_was_measured():
    runs = json.loads(ALIVE.read_text())["runs"].values()

    def mean(codes, name):
        return statistics.fmean(
            r[name] for r in runs if r["recipe"] == "ours" and r["codes"] == codes
        )

    assert (
        f"{mean(65536, 'psnr'):.1f} dB with {mean(65536, 'codes_used') / 65536:.0%} of its codes "
        f"in use, where 512 codes give {mean(512, 'psnr'):.1f} dB"
    ).replace("%", " %") in " ".join(README.split())
    rows = [line for line in ALIVE.with_suffix(".md").read_text().splitlines() if "|" in line]
    assert len(rows) == 2 + 8
    assert "\n".join(rows) in SCALING
    errors = [
        [r["mse"] for r in runs if r["recipe"] == "ours" and r["codes"] == codes]
        for codes in (512, 4096, 16384, 65536)
    ]
    for fewer, more in itertools.pairwise(errors):
        assert max(more) < min(fewer)  # what docs/scaling.md says of the seeds


MIGRATING = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", MIGRATING, re.DOTALL))
def test_examples_of_migrating_run(example):
    names = {"torch": torch}
    exec(example, names)
    quantized = names.get("quantized", names.get("z_q"))
    assert quantized.shape[0] == 2
    assert names["loss"].ndim == 0
    assert names["indices"].dtype == torch.int64


def test_no_placeholder_is_left():
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX)\b|lorem ipsum|coming soon", README, re.IGNORECASE)
