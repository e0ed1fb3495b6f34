"""Files that are almost what they should be."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from vqvae_fast.errors import UserError
from vqvae_fast.training.data import open_data
from vqvae_fast.training.files import read_image
from vqvae_fast.training.runfolder import METRICS, read_metrics


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.ones((40, 40), dtype)).save(path)
    with pytest.raises(UserError, match="has 32-bit pixels, 8 or 16 bits were expected"):
        read_image(path)


ROW = b'{"step": 1, "loss": 2.0}\n'


@pytest.mark.parametrize("cut", [b'{"st', b"\0\0\0", b'{"step": 2, "loss": 1.'])
def test_a_line_that_a_crash_has_cut_off_is_left_out(tmp_path, cut):
    (tmp_path / METRICS).write_bytes(ROW + cut)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"\xff\xfe", "line 2 of .*metrics.jsonl must be a JSON object"),
        (b"", "line 2 of"),
        (b"[1]", "got a value of type list"),
        (b'{"step": "a"}', "step is not a number"),
        (b'{"step": true}', "step is not a number"),
        (b'{"step": -2}', "step is not a whole number of at least 1"),
        (b'{"step": 2.5}', "step is not a whole number of at least 1"),
        (b'{"loss": 2.5}', "step is not a whole number of at least 1"),
        (b'{"step": 2, "loss": []}', "loss is not a number"),
        (b'{"step": 2, "loss": 1' + b"0" * 400 + b"}", "loss is not a number"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"step": 2, "loss": ' + b"[" * 200_000, "it is nested too deeply"),
    ],
)
def test_other_odd_lines_of_metrics_are_told(tmp_path, line, sentence):
    (tmp_path / METRICS).write_bytes(ROW + line + b"\n" + ROW)
    with pytest.raises(UserError, match=sentence):
        read_metrics(tmp_path)


def zipped(path, name: str, header: np.ndarray, content: bytes) -> None:
    """A .npz whose array has the header of one array and the content of another."""
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, np.lib.format.header_data_from_array_1_0(header))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", begin.getvalue() + content)


def test_headers_that_promise_more_than_the_file_has_are_told(tmp_path):
    huge = np.broadcast_to(np.uint8(0), (10**6, 1000, 1000, 3))
    zipped(tmp_path / "x.npz", "images", huge, b"few")
    with pytest.raises(UserError, match=r"must have 3000000000000 bytes .* got 3"):
        open_data(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("hidden", ["images", "other"])
def test_an_array_that_another_would_hide_is_refused(tmp_path, hidden):
    """NumPy prefers the entry without the ending, whose header nothing has compared."""
    np.savez(tmp_path / "x.npz", images=np.random.rand(9, 8, 8, 3))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr(hidden, b"")
    with pytest.raises(UserError, match="is not the only array of its name"):
        open_data(str(tmp_path / "x.npz"))


def test_only_the_array_that_is_used_is_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.random.rand(9, 8, 8, 3), other=np.zeros(10**6))
    read = []
    load = np.lib.npyio.NpzFile.__getitem__

    def note(archive, name):
        read.append(name)
        return load(archive, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", note)
    open_data(str(tmp_path / "x.npz"))
    assert read == ["images"]


def test_a_header_without_end_is_not_read_to_its_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        length = 10**8
        header = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b" " * length
        archive.writestr("images.npy", header)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="cannot be read as a NumPy file"):
            open_data(str(tmp_path / "x.npz"))
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
