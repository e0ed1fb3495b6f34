"""Files that are almost what they should be."""

import numpy as np
import pytest
from PIL import Image

from vqvae_fast.training.errors import UserError
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
