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


@pytest.mark.parametrize("broken", [b"\xff\xfe\n", b'{"step": "a"}\n', b"[1]\n", b'{"st'])
def test_metrics_are_read_up_to_what_is_broken(tmp_path, broken):
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "loss": 2.0}\n' + broken)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
