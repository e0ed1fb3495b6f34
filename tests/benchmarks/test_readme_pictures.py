"""The drawings of the documentation show committed records, and a search whose bound holds."""

import json
import re
import statistics

import numpy as np
import pytest

pictures = pytest.importorskip("benchmarks.pictures", reason="drawing needs matplotlib")


@pytest.fixture
def records():
    folder = pictures._RECORDS
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("search", "drop_in")]


def test_the_chart_shows_each_peer_at_each_shape_that_it_was_measured_at(records):
    search, drop_in = records
    of_peers = pictures.speed_ups(search, drop_in)
    of_faiss = [
        entry["contenders"]["FAISS search"]["times_slower_than_ours"]["median"]
        for entry in search["results"]
        if "FAISS search" in entry["contenders"]
    ]
    assert of_peers["FAISS"] == of_faiss
    assert all(len(ratios) >= 20 for ratios in list(of_peers.values())[:-1])
    assert len(of_peers[pictures._MODULES]) == len(drop_in["results"])
    assert f"{statistics.geometric_mean(of_faiss):.1f}" == "8.3"  # as the README says


@pytest.mark.parametrize("unit", [0.01, 0.3, 2.0])
def test_the_drawn_filter_never_rules_the_nearest_code_out(unit):
    random = np.random.default_rng(0)
    for _ in range(200):
        z, codes = random.standard_normal(6), random.standard_normal((30, 6))
        search = pictures.filtered(z, codes, unit)
        exact = codes @ z - np.square(codes).sum(axis=1) / 2
        nearest = search.distances.argmin()
        assert abs(search.scores - exact)[nearest] <= search.error
        assert search.kept[nearest]


def test_the_example_is_the_one_that_the_page_computes():
    page = (pictures._ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
    search = pictures.filtered(pictures.EXAMPLE_Z, pictures.EXAMPLE_CODES, unit=1.0)
    for code, (e, score) in enumerate(zip(pictures.EXAMPLE_CODES, search.scores, strict=True)):
        row = rf"\| {code} \| \({e[0]}, {e[1]}\) \| .*? \| {score:.3f} \| .* \|"
        assert re.search(row, page), row
    assert f"= {search.error:.3f}`" in page
    assert f"= {search.bound:.3f}`" in page
    assert search.kept.nonzero()[0].tolist() == [0, 3]


def test_all_pictures_are_drawn(tmp_path, capsys):
    assert pictures.main(["--out", str(tmp_path)]) == 0
    written = [tmp_path / name for name in ("speed_up.png", "filter.png", "example.png")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 1 << 20
