"""Charts and their page, from made-up records; the slopes that they state."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import report, sweep
from vqvae_fast.bench.interleave import summarise

HEAD = {
    "command": "python -m benchmarks.some",
    "date": "2026-01-02 03:04 UTC",
    "cpu": "a processor",
    "threads": 2,
}


def line(seconds):
    ratio = summarise([seconds, 1.1 * seconds])._asdict()
    return {
        "seconds": summarise([seconds / 1e3])._asdict(),
        "times_slower_than_ours": ratio,
        "peak_memory": int(seconds * (1 << 20)),
    }


def entry(n, k, d, data="Gaussian"):
    names = {"ours": 1.0, "torch addmm+argmin": 9.0, "FAISS search": 3.0 * k / 512}
    return {
        "shape": {"n": n, "k": k, "d": d},
        "data": data,
        "dtype": "float32",
        "contenders": {name: line(seconds) for name, seconds in names.items()},
        "skipped": {},
    }


def grown(axis, doublings):
    sizes = {"n": 64, "k": 512, "d": 8}
    return entry(**sizes | {axis: sizes[axis] << doublings})


RECORDS = {
    "search": HEAD
    | {
        "peak": {"gflops": 400.0},
        "limits": {"float32_gflops": 410.0, "int8_gops": 1600.0, "read_gb_per_s": 30.0},
        "results": [entry(2048, 512, 64), entry(64, 1024, 8), entry(99, 70, 5, "trained")],
    },
    "layer": HEAD | {"results": [entry(2048, 512, 64)]},
    "drop_in": HEAD
    | {
        "results": [
            {
                "configuration": "VectorQuantize (EMA)",
                "shape": {"n": 2, "k": 3, "d": 4},
                "times_faster": summarise([5.0])._asdict(),
            }
        ]
    },
    "sweep": HEAD
    | {
        "sweeps": [
            {
                "axis": axis,
                "title": "codes",
                "search": [grown(axis, i) for i in range(4)],
                "layer": [grown(axis, i) for i in range(4)],
            }
            for axis in ("k", "d", "n")
        ]
    },
    "alive": HEAD
    | {
        "runs": {
            f"{recipe}-{k}": {"recipe": recipe, "codes": k, "psnr": 27.0, "codes_used": k - 9}
            for recipe in ("ours", "peer")
            for k in (512, 65536)
        }
    },
    "training": HEAD
    | {
        "runs": {
            f"{recipe}-0": {
                "recipe": recipe,
                "seed": 0,
                "curve": [[10 * i, 0.5 / i] for i in range(1, 40)],
            }
            for recipe in ("ema", "gradient", "reference")
        }
    },
}


@pytest.fixture
def folder(tmp_path):
    for name, record in RECORDS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.slow
def test_every_chart_is_drawn_and_shown(folder, capsys):
    assert report.main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.md")
    page = (folder / "report.md").read_text()
    for picture in report.PICTURES:
        path = folder / f"{picture.name}.png"
        with Image.open(path) as image:
            assert 900 <= image.width <= 1200
            pixels = np.asarray(image.convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # not blank
        assert path.stat().st_size < 150 << 10
        assert f"![{picture.caption}]({path.name})" in page
    assert page.count("`python -m benchmarks.some`, 2026-01-02 03:04 UTC, a processor") == len(
        report.PICTURES
    )


@pytest.mark.slow
def test_a_second_run_draws_the_same_files(folder):
    report.write(folder)
    first = {path: path.read_bytes() for path in folder.glob("*.png")}
    report.write(folder)
    assert {path: path.read_bytes() for path in folder.glob("*.png")} == first


def test_what_is_missing_is_named(folder):
    (folder / "sweep.json").unlink()
    (folder / "drop_in.json").unlink()
    page = report.write(folder).read_text()
    assert "No records of: drop_in, sweep." in page
    assert not (folder / "codes_search.png").exists()


def test_charts_without_data_are_left_out(folder):
    record = RECORDS["search"] | {"results": [entry(2048, 512, 64)], "limits": {}}
    (folder / "search.json").write_text(json.dumps(record))
    assert "search_trained.png" not in report.write(folder).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "layer.json is not JSON"), ('{"command": ""}', r"layer.json does not fit layer: Key")],
)
def test_a_malformed_record_is_refused(folder, text, message):
    (folder / "layer.json").write_text(text)
    with pytest.raises(report.BadRecordError, match=message):
        report.write(folder)


def test_an_empty_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "holds no records: run the benchmarks first" in capsys.readouterr().err


def test_slopes_are_exponents_of_the_upper_half():
    sizes = [2**i for i in range(8)]
    values = [5.0] * 4 + [3.0 * size**1.5 for size in sizes[4:]]
    assert sweep.slope(sizes, values) == pytest.approx(1.5)
    assert sweep.slope([1, 2, 4], [1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert sweep.slope([1], [1.0]) is None
