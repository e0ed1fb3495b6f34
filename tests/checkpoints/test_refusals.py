"""What is not loaded: files with code, damaged files, weights that are none, sizes beyond reason.

Every message says what was expected and what was given, and nothing is allocated before it.
"""

import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import vqvae_fast
from vqvae_fast.checkpoints import StoredQuantizer
from vqvae_fast.checkpoints.files import NUMPY_CONSTRUCTORS
from vqvae_fast.checkpoints.stored import FORMAT

CODES = torch.randn(8, 4)
NAME = "vq.embedding.weight"


def vqp_layout(**changed: object) -> dict[str, object]:
    layout = {
        "initted": torch.tensor(True), "cluster_size": torch.ones(1, 8),
        "embed_avg": CODES[None], "embed": CODES[None],
    }  # fmt: skip
    return {f"vq._codebook.{name}": value for name, value in {**layout, **changed}.items()}


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_is_refused(tmp_path):
    target = tmp_path / "executed"
    bad = tmp_path / "bad.pt"
    torch.save({"vq.embedding.weight": CODES, "extra": Malicious(target)}, bad)
    refusal = rf"{os.system.__module__}\.system\); nothing in it was executed"
    with pytest.raises(ValueError, match=refusal):
        vqvae_fast.load_quantizer(bad)
    assert not target.exists()
    torch.load(bad, weights_only=False)
    assert target.exists(), "the file would not have done anything"


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"model": 1}, 2), b"PK\3\4 cut"])
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt"):
        vqvae_fast.load_quantizer(tmp_path / "file.pt")


def test_other_contents(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a state dict, got list"):
        vqvae_fast.load_quantizer(tmp_path / "list.pt")
    with pytest.raises(
        TypeError, match=r"a path, a state dict, a checkpoint or .* module, got int"
    ):
        vqvae_fast.load_quantizer(3)
    with pytest.raises(FileNotFoundError):
        vqvae_fast.load_quantizer(tmp_path / "nowhere.pt")


def test_torchscript_is_code(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    with pytest.raises(
        ValueError, match=r"scripted\.pt is a TorchScript archive, which holds code"
    ):
        vqvae_fast.load_quantizer(tmp_path / "scripted.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(tmp_path, zipped):
    path = tmp_path / "cut.pt"
    torch.save({NAME: CODES}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(1, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            vqvae_fast.load_quantizer(path)


@pytest.mark.parametrize("name", ["folder", "folder.safetensors"])
def test_paths_that_are_no_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        vqvae_fast.load_quantizer(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"must be a file, this is a folder: .*{name}"):
        vqvae_fast.load_quantizer(tmp_path / name)


def test_safetensors_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        vqvae_fast.load_quantizer(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"text", bytes(8), b"\xff" * 64])
def test_safetensors_damaged(tmp_path, content):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        vqvae_fast.load_quantizer(tmp_path / "model.safetensors")


@pytest.mark.parametrize("prefix", [3, True, b"vq", ["vq"]])
def test_a_prefix_is_a_string(prefix):
    with pytest.raises(TypeError, match="prefix must be a string or None, got "):
        vqvae_fast.load_quantizer({NAME: CODES}, prefix)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "in an empty checkpoint"),
        ({"epoch": 3}, "in a checkpoint without tensors; its keys are: epoch"),
        ({"model": {}}, "in a checkpoint without tensors; its keys are: model"),
        ({0: CODES}, r"by the keys: 0 \(not a string but int\)"),
        (
            {NAME.encode(): CODES},
            r"by the keys: b'vq\.embedding\.weight' \(not a string but bytes\)",
        ),
        ({"format": np.zeros(2), "w": CODES}, "by the keys: format, w"),
        (
            {"model.quantizer.codes": CODES, "enc.vq2.table.x": CODES, "enc.w": CODES},
            r".*named like one, but of no known layout: model\.quantizer, enc\.vq2\)",
        ),
    ],
)
def test_where_there_is_no_quantizer(state, message):
    with pytest.raises(ValueError, match=f"no quantizer is known {message}"):
        vqvae_fast.load_quantizer(state)


def test_a_checkpoint_that_holds_itself():
    checkpoint: dict[str, object] = {}
    for name in ("ema", "best_state", "model", "state_dict", "model_state_dict", "module"):
        checkpoint[name] = checkpoint
    with pytest.raises(ValueError, match="a checkpoint without tensors"):
        vqvae_fast.load_quantizer(checkpoint)


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.quantize_per_tensor(CODES, 0.1, 0, torch.qint8)


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.nested.nested_tensor([CODES, CODES])


@pytest.mark.parametrize(
    ("codes", "given"),
    [
        (lambda: CODES.numpy(), "got a value of type ndarray"),
        (lambda: CODES.tolist(), "got a value of type list"),
        (lambda: None, "got a value of type NoneType"),
        (lambda: CODES.to(torch.complex64), r"got torch\.complex64"),
        (lambda: CODES.to(torch.float8_e4m3fn), r"got torch\.float8_e4m3fn"),
        (lambda: CODES.long(), r"got torch\.int64"),
        (lambda: CODES > 0, r"got torch\.bool"),
        (lambda: CODES.to_sparse(), r"got a tensor of layout torch\.sparse_coo"),
        (quantized, r"got a quantized tensor \(torch\.qint8\)"),
        (nested, "got a nested tensor"),
        (lambda: CODES.to("meta"), r"got a tensor without data, \[8, 4\] on the device meta"),
    ],
)
def test_codes_that_are_none(codes, given):
    with pytest.raises(ValueError, match=rf"^vq\.embedding\.weight must be .*, {given}$"):
        vqvae_fast.load_quantizer({NAME: codes()})


@pytest.mark.parametrize(
    ("name", "value"),
    [("cluster_size", [1.0] * 8), ("initted", torch.tensor(True, device="meta"))],
)
def test_what_stands_beside_the_codes(name, value):
    with pytest.raises(ValueError, match=rf"^vq\._codebook\.{name} must be a dense tensor"):
        vqvae_fast.load_quantizer(vqp_layout(**{name: value}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_codes_that_are_not_finite(value, dtype):
    codes = CODES.to(dtype, copy=True)
    codes[3, 1] = value
    with pytest.raises(ValueError, match="must be finite, got NaN or Inf in 1 of 8 vectors"):
        vqvae_fast.load_quantizer({NAME: codes})
    with pytest.raises(ValueError, match=r"_codebook\.embed must be finite"):
        vqvae_fast.load_quantizer(vqp_layout(embed=codes[None]))
    # Averages are overwritten or mended by training, and nothing is decoded from them.
    vqvae_fast.load_quantizer(vqp_layout(embed_avg=codes[None]))


def test_shapes_beyond_what_a_file_holds(tmp_path):
    """One number, expanded: some hundred bytes that would ask for terabytes."""
    torch.save({NAME: torch.zeros(1).expand(10**12, 64)}, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 5000
    message = r"must hold what its shape says, got \[1000000000000, 64\].* 256000000000000 bytes"
    with pytest.raises(ValueError, match=message):
        vqvae_fast.load_quantizer(tmp_path / "small.pt")
    few = vqvae_fast.load_quantizer({NAME: torch.ones(1).expand(8, 4)})
    assert torch.equal(few.codebook, torch.ones(8, 4))


class Petabytes:
    def __reduce__(self):
        return NUMPY_CONSTRUCTORS[0][0], (np.ndarray, (10**15,), b"b")


def test_arrays_beyond_memory(tmp_path):
    torch.save({NAME: CODES, "losses": Petabytes()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt asks for more memory than there is"):
        vqvae_fast.load_quantizer(tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("VectorQuantizer", {"n_e": 10**14, "e_dim": 4}, r"would be \[10{14}, 4\], got \[8, 4\]"),
        ("VectorQuantizer", {"n_e": 2**62, "e_dim": 2**62}, "cannot be made"),
        ("SimVQ", {"dim": 4, "codebook_size": 10**14}, r"frozen_codebook would be .*, got \[0\]"),
        (
            "ResidualVQ",
            {"dim": 4, "codebook_size": 8, "num_quantizers": 10**12},
            "num_quantizers must be at most the number of weights, 1, got 1000000000000",
        ),
        (
            "VectorQuantize",
            {"dim": 4, "codebook_size": 8, "mlp_kwargs": {"depth": 10**12}},
            "depth must be at most",
        ),
        ("VectorQuantizer", {"n_e": "8", "e_dim": 4}, "n_e must be a positive integer, got '8'"),
        ("VectorQuantizer", {8: 4}, "the names of its arguments must be strings, got 8"),
    ],
)
def test_arguments_in_a_file_of_ours(name, arguments, message):
    state = {"embedding.weight": CODES}
    content = {"format": FORMAT, "class": name, "arguments": arguments, "state": state}
    with pytest.raises(ValueError, match=message):
        vqvae_fast.load_quantizer(content)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({8: CODES}, "the names of its state must be strings, got 8"),
        ({"embedding.weight": 3}, r"embedding\.weight must be a dense tensor of .* type int"),
    ],
)
def test_weights_in_a_file_of_ours(state, message):
    arguments = {"n_e": 8, "e_dim": 4}
    content = {"format": FORMAT, "class": "VectorQuantizer", "arguments": arguments, "state": state}
    with pytest.raises(ValueError, match=message):
        vqvae_fast.load_quantizer(content)


def test_files_of_a_newer_version():
    with pytest.raises(
        ValueError, match="newer vqvae_fast: vqvae_fast quantizer 2, this one reads"
    ):
        vqvae_fast.load_quantizer({"format": "vqvae_fast quantizer 2"})


def test_a_stored_quantizer_names_one_of_our_classes(tmp_path):
    StoredQuantizer("Popen", {"args": "true"}, {}).save(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"must be one of VectorQuantizer, .*got 'Popen'"):
        vqvae_fast.load_quantizer(tmp_path / "bad.pt")
    torch.save({"format": "vqvae_fast quantizer 1", "class": "SimVQ"}, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="is damaged"):
        vqvae_fast.load_quantizer(tmp_path / "cut.pt")


RUN_SIZES = {"n_embeddings": 4, "embedding_dim": 2, "beta": 0.25}


@pytest.mark.parametrize(
    ("config", "prefix", "sentence"),
    [
        (RUN_SIZES, "encoder", "stands below vector_quantization, got 'encoder'"),
        ({"beta": 0.25}, None, "model_config of the checkpoint lacks n_embeddings, embedding_dim"),
        (RUN_SIZES, "vector_quantization", "the class must be one of VectorQuantizer, "),
    ],
)
def test_runs_that_name_the_class_of_their_quantizer(config, prefix, sentence):
    checkpoint = {
        "model_config": {**config, "quantizer": {"class": "Linear"}},
        "model": {"vector_quantization.weight": torch.zeros(4, 2)},
    }
    with pytest.raises(ValueError, match=sentence):
        vqvae_fast.load_quantizer(checkpoint, prefix)
