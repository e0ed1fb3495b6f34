"""The examples of docs/models.md run, and its report is what the first of them prints."""

import re
from pathlib import Path

import pytest
import torch

from vqvae_fast.acceleration.known import KNOWN

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def recipes_are_put_back():
    before = list(KNOWN)
    yield
    KNOWN[:] = before


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, capsys):
    if "transformers" in EXAMPLES[number]:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    exec(EXAMPLES[number], {"__name__": "example"})
    out = capsys.readouterr().out
    if number == 0:
        (report,) = re.findall(r"```\n(vqvae_fast accelerates.*?)```", PAGE, re.DOTALL)
        assert out == report
    assert "vqvae_fast accelerates" in out or "differ" in out
