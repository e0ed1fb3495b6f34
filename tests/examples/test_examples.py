"""The scripts in examples/ run as their first lines say, on little data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_codec_is_accelerated():
    pytest.importorskip("transformers")
    text = output_of(str(EXAMPLES / "accelerate_a_codec.py"), "--tiny")
    assert "vqvae_fast accelerates 2 quantizers" in text
    assert "0 of 4 codes are others" in text


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_tokenizer_is_trained(processes):
    script = [str(EXAMPLES / "train_a_tokenizer.py"), "--codes", "64", "--steps", "3"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    text = output_of(*(torchrun if processes > 1 else []), *script, "--batch", "2")
    errors = [float(number) for number in re.findall(r"error ([\d.]+)", text)]
    assert len(errors) == 2  # of the first step and the last, printed by one process
    assert 0 < errors[1] < errors[0]


def measured(*contenders: str) -> str:
    named = [part for name in contenders for part in ("--contender", str(EXAMPLES / name))]
    command = ["-m", "vqvae_fast.cli", "bench", "--no-peers", "--shape", "256,512,16"]
    return output_of(*command, "--rounds", "1", "--threads", "1", *named)


def test_a_search_is_measured_beside_ours():
    text = measured("write_a_search.py:prepare")
    assert re.search(r"^  ours .* ms .* GFLOP/s", text, re.MULTILINE)
    assert re.search(r"write_a_search.py:prepare .* ms .* GFLOP/s", text)


def test_searches_in_cpp_are_measured_beside_ours():
    text = measured("search_in_cpp.py:plain", "search_in_cpp.py:panels")
    lines = [line for line in text.splitlines() if "search_in_cpp.py:" in line]
    assert len(lines) == 2
    assert all("GFLOP/s" in line and "wrong" not in line for line in lines)


def test_every_example_is_tried():
    tried = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in tried] == []
