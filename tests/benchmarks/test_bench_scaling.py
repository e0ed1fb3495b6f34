"""The benchmarks of large and of sharded codebooks, and of codes that stay alive: tiny runs."""

import json

import numpy as np
import pytest

from benchmarks import alive, large_codebooks, sharded
from vqvae_fast.bench import environment
from vqvae_fast.bench.interleave import summarise
from vqvae_fast.training import open_data


@pytest.mark.slow
def test_large_codebooks(tmp_path, capsys):
    out = tmp_path / "large.json"
    record = large_codebooks.main(["--quick", "--json", str(out)])
    assert json.loads(out.read_text())["results"] == record["results"]
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    for entry, shape in zip(record["results"], large_codebooks.QUICK, strict=True):
        assert entry["shape"] == shape._asdict()
        assert set(entry["contenders"]) | set(entry["skipped"]) == {
            peer.name for peer in large_codebooks.LAYERS
        }


def test_a_peer_that_does_not_fit_is_named_in_its_row():
    line = {"seconds": summarise([1.0])._asdict(), "peak_memory": 1 << 20}
    entry = {
        "shape": {"n": 1, "k": 2, "d": 3},
        "contenders": {large_codebooks.EMA: line, large_codebooks.GRADIENT: line},
        "skipped": {large_codebooks.PEER: "would need 9 GiB"},
    }
    record = environment.describe("benchmarks.large_codebooks", 1)
    record |= {"rounds": 1, "results": [entry]}
    assert "would need 9 GiB" in large_codebooks.markdown(record)


@pytest.mark.slow
def test_what_is_sent_is_what_is_predicted(tmp_path):
    record = sharded.main(["--quick", "--json", str(tmp_path / "sharded.json")])
    assert [entry["processes"] for entry in record["results"]] == 2 * list(sharded.PROCESSES)
    for entry in record["results"]:
        # Which process has whose codes is chance; besides, a few numbers are added up.
        assert entry["bytes_sent"] == pytest.approx(entry["bytes_predicted"], rel=0.2, abs=512)
        assert entry["search"]["median"] < entry["seconds"]["median"]
        assert entry["codes_here"] == 64 // entry["processes"]


@pytest.mark.slow
def test_recipes_of_large_codebooks(tmp_path, capsys):
    arguments = [
        "--codes",
        "20",
        "--steps",
        "2",
        "--seeds",
        "3",
        "4",
        "--json",
        str(tmp_path / "a.json"),
    ]
    record = alive.main(arguments)
    assert set(record["runs"]) == {"ours-20-3", "peer-20-3", "ours-20-4", "peer-20-4"}
    for run in record["runs"].values():
        assert 0 < run["codes_used"] <= 20
        assert 0 < run["codes_used_in_training"] <= 20
        assert run["psnr"] > 0
    ours = [record["runs"][f"ours-20-{seed}"] for seed in (3, 4)]
    assert ours[0]["mse"] != ours[1]["mse"]
    mean = (ours[0]["psnr"] + ours[1]["psnr"]) / 2
    (row,) = (
        line for line in alive.markdown(record).splitlines() if line.startswith("| 20 | ours")
    )
    assert row.split("|")[3].strip() == f"{mean:.2f}"
    capsys.readouterr()
    again = alive.main(arguments)
    assert again["runs"] == record["runs"]
    assert capsys.readouterr().out.count("there already") == 4
    with pytest.raises(SystemExit):
        alive.main(["--only", "nobody"])


def test_held_out_strips_share_no_pixel_with_the_rest():
    whole = open_data("photos")
    images = alive.scattered(whole)
    photographs = whole.train.images
    seen = [np.zeros(photographs[i].shape[:2], dtype=int) for i in range(len(photographs))]
    for regions in (images.train, images.held_out):
        for image, top, left, height, width in regions.boxes:
            seen[image][top : top + height, left : left + width] += 1
    assert max(pixels.max() for pixels in seen) == 1
    held_out = sum(int(height * width) for *_, height, width in images.held_out.boxes)
    assert 0.15 < held_out / sum(pixels.size for pixels in seen) < 0.25
    assert images.validation(4).shape == images.batch(0, 0, 4).shape == (4, 3, 32, 32)
