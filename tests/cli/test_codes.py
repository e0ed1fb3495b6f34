"""encode and decode: nothing is lost between them, and what does not fit is refused."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae_fast.cli import main
from vqvae_fast.training import load_model
from vqvae_fast.training.codes import ImageCodes, read_codes, write_codes
from vqvae_fast.training.files import read_image
from vqvae_fast.training.reconstruct import encode_image, reconstruct_image


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def train(folder: Path, name: str, *options: str) -> Path:
    data = folder / "x.npy"
    if not data.exists():
        np.save(data, np.random.default_rng(0).random((10, 16, 16, 3)))
    small = ["--steps", "1", "--dim", "4", "--batch-size", "2", "--device", "cpu"]
    assert call("train", "--data", data, "--out", folder / name, *small, *options) == 0
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("run"), "run", "--codebook-size", "300")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Sizes that are no multiples of the stride, one of them smaller than it."""
    rng, paths = np.random.default_rng(1), []
    for name, height, width in (("a.png", 19, 30), ("b.jpg", 3, 2), ("c.bmp", 16, 8)):
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


@pytest.fixture
def codes(pictures, run, tmp_path) -> Path:
    assert call("encode", *pictures, "--run", run, "-o", tmp_path / "codes.npz") == 0
    return tmp_path / "codes.npz"


def test_round_trip(pictures, run, tmp_path, capsys):
    codes = tmp_path / "codes.npz"
    assert call("encode", *pictures, "--run", run, "-o", codes) == 0
    out = capsys.readouterr().out
    assert f"codes   {5 * 8 + 1 + 4 * 2}, each one of 300" in out
    bits, pixels = 8 * codes.stat().st_size, 19 * 30 + 3 * 2 + 16 * 8
    assert f"rate    {bits / pixels:.4f} bits per pixel" in out
    model = load_model(run)
    with np.load(codes, allow_pickle=False) as archive:
        assert archive["indices"].dtype == np.uint16
        assert archive["names"].tolist() == ["a.png", "b.jpg", "c.bmp"]
        assert archive["sizes"].tolist() == [[19, 30], [3, 2], [16, 8]]
    for path, stored in zip(pictures, read_codes(codes, model), strict=True):
        assert torch.equal(stored.indices, encode_image(model, read_image(path)))

    assert call("decode", codes, "--run", run, "-o", tmp_path / "back") == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a.png", "b.png", "c.png"]
    for path in pictures:
        expected = reconstruct_image(model, read_image(path)).pixels
        assert np.array_equal(read_image(tmp_path / "back" / f"{path.stem}.png"), expected)


@pytest.mark.parametrize(
    ("codes_of_model", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65537, "uint32")]
)
def test_smallest_type_that_holds_every_index(tmp_path, codes_of_model, dtype):
    from vqvae_fast import VQVAE

    model = VQVAE(4, 2, 0, codes_of_model, 2)
    indices = torch.tensor([[0, codes_of_model - 1]])
    write_codes(tmp_path / "c.npz", model, [ImageCodes("x.png", 4, 8, indices)])
    with np.load(tmp_path / "c.npz") as archive:
        assert archive["indices"].dtype == dtype
    (stored,) = read_codes(tmp_path / "c.npz", model)
    assert torch.equal(stored.indices, indices)


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert call(*arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vqvae-fast: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--codebook-size", "32"], "n_embeddings is 300 in the file, 32 in the model"),
        (["--codebook-size", "300", "--seed", "1"], "fingerprint is"),
    ],
)
def test_codes_of_another_model(codes, tmp_path, capsys, options, sentence):
    other = train(tmp_path, "other", *options)
    err = refused(capsys, "decode", codes, "--run", other, "-o", tmp_path / "back")
    assert sentence in err
    assert not (tmp_path / "back").exists()


def changed(codes: Path, **entries: object) -> Path:
    with np.load(codes) as archive:
        content = {name: archive[name] for name in archive.files} | entries
    np.savez(codes, **{name: value for name, value in content.items() if value is not None})
    return codes


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"stride": 8}, "stride is 8 in the file, 4 in the model"),
        ({"channels": 1}, "channels is 1 in the file, 3 in the model"),
        ({"n_embeddings": [300]}, "n_embeddings is None in the file"),
        ({"format": "vqvae_fast codes 9"}, "is not a file of vqvae-fast encode"),
        ({"format": None}, "is not a file of vqvae-fast encode"),
        ({"names": None}, "is damaged"),
        ({"names": np.array(["a", "b"])}, "is damaged: names, sizes or indices"),
        ({"names": np.array(["../a", "b", "c"])}, "'../a' is not the name of an image"),
        ({"names": np.array(["a.x", "a.y", "c"])}, "two of its images have the same name as a PNG"),
        ({"names": np.array(["a.x", "a.x", "c"])}, "two of its images have the same name, a.x"),
        ({"names": np.array(["a", "b", "\ud800"])}, "cannot be the name of a file"),
        (
            {"names": np.array(["a", "b", "c" * 252])},
            "a name of 256 bytes, at most 255",
        ),
        ({"names": np.array(["", "", ""])}, "'' is not the name of an image"),
        ({"sizes": np.array([[19, 30], [3, 2], [2**31, 8]])}, "cannot be of 2147483648x8 pixels"),
        ({"n_embeddings": np.array("x" * 1000)}, "n_embeddings is None in the file"),
        ({"names": np.array([{}, {}, {}], dtype=object)}, "is damaged"),
        ({"sizes": np.array([[19, 30], [3, 2], [16, 0]])}, "is damaged: c.bmp cannot be of 16x0"),
        ({"sizes": np.array([[19, 30], [3, 2], [16, 9]])}, "have 53 codes, it has 49"),
        ({"indices": np.zeros(49, np.float32)}, "is damaged: names, sizes or indices"),
        ({"indices": np.full(49, 300, np.uint16)}, "indices must be below 300, got 300"),
    ],
)
def test_what_is_no_codes_of_this_model(codes, run, tmp_path, capsys, entries, sentence):
    err = refused(
        capsys, "decode", changed(codes, **entries), "--run", run, "-o", tmp_path / "back"
    )
    assert sentence in err
    assert not (tmp_path / "back").exists()


def test_files_of_other_kinds(codes, run, tmp_path, capsys):
    def decode(path: Path) -> str:
        return refused(capsys, "decode", path, "--run", run, "-o", tmp_path / "back")

    assert "codes not found: nowhere.npz" in decode(Path("nowhere.npz"))
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    assert "is a folder, a file was expected" in decode(tmp_path)
    for path in (tmp_path / "text.npz", tmp_path / "foreign.npz"):
        assert "is not a file of vqvae-fast encode" in decode(path)
    content = bytearray(codes.read_bytes())
    content[len(content) // 2] ^= 0xFF
    codes.write_bytes(content)
    assert "damaged" in decode(codes)
    codes.write_bytes(content[: len(content) // 2])
    assert "is not a file of vqvae-fast encode" in decode(codes)


def test_nothing_is_overwritten_unasked(pictures, codes, run, tmp_path, capsys):
    before = codes.read_bytes()
    encode = ("encode", pictures[0], "--run", run, "-o", codes)
    assert "exists and is not replaced without --overwrite" in refused(capsys, *encode)
    assert codes.read_bytes() == before
    assert call(*encode, "--overwrite") == 0
    assert codes.read_bytes() != before

    back = tmp_path / "back"
    back.mkdir()
    (back / "a.png").write_text("mine")
    decode = ("decode", codes, "--run", run, "-o", back)
    assert "a.png exists and is not replaced without --overwrite" in refused(capsys, *decode)
    assert (back / "a.png").read_text() == "mine"
    assert call(*decode, "--overwrite") == 0
    assert read_image(back / "a.png").shape == (19, 30, 3)


def test_encode_errors(pictures, run, tmp_path, capsys):
    def encode(*images: Path, out: str = "codes.npz") -> str:
        err = refused(capsys, "encode", *images, "--run", run, "-o", tmp_path / out)
        assert not (tmp_path / "codes.npz").exists()
        return err

    (tmp_path / "text.png").write_text("not a picture")
    assert "text.png is not an image" in encode(pictures[0], tmp_path / "text.png")
    assert "image not found" in encode(tmp_path / "nowhere.png")
    assert "must end in .npz" in encode(pictures[0], out="codes.zip")
    assert "there is no folder" in encode(pictures[0], out="no/codes.npz")
    (tmp_path / "a.jpg").write_bytes(pictures[0].read_bytes())
    assert "would both be decoded to a.png" in encode(pictures[0], tmp_path / "a.jpg")
    assert "Missing argument" in encode()


def test_an_image_called_as_the_file_of_codes_is_not_replaced(pictures, run, capsys):
    image = pictures[0].with_suffix(".npz")
    image.write_bytes(pictures[0].read_bytes())
    err = refused(capsys, "encode", image, "--run", run, "-o", image, "--overwrite")
    assert "is read and cannot be written, too" in err


def test_decode_into_something_else_than_a_folder(codes, run, tmp_path, capsys):
    assert "is a file" in refused(capsys, "decode", codes, "--run", run, "-o", codes)
    far = tmp_path / "no" / "back"
    assert "there is no folder" in refused(capsys, "decode", codes, "--run", run, "-o", far)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"indices": np.zeros(10**8, np.uint16)}, "have 49 codes, it has 100000000"),
        ({"sizes": np.ones((10**8, 2), np.uint8)}, "names, sizes or indices are not"),
        ({"fingerprint": np.zeros((), "U10000000")}, "fingerprint is None in the file"),
        (
            {"names": np.zeros(10**7, "U9"), "sizes": np.ones((10**7, 2), np.uint8)},
            "'' is not the name of an image",
        ),
        (
            {"names": np.full(10**7, "a"), "sizes": np.ones((10**7, 2), np.uint8)},
            "two of its images have the same name, a",
        ),
    ],
)
def test_a_small_file_does_not_take_much_memory(codes, run, tmp_path, capsys, entries, sentence):
    with np.load(codes) as archive:
        content = {name: archive[name] for name in archive.files} | entries
    np.savez_compressed(codes, **content)
    del content
    assert codes.stat().st_size < 10**6
    tracemalloc.start()
    try:
        err = refused(capsys, "decode", codes, "--run", run, "-o", tmp_path / "back")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert sentence in err


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".j2k", ".tiff"])
def test_every_legal_name_can_be_written(pictures, run, tmp_path, suffix):
    long = "n" * 251
    image = tmp_path / (long + ".bmp")
    image.write_bytes(pictures[2].read_bytes())
    assert call("encode", image, "--run", run, "-o", tmp_path / (long + ".npz")) == 0
    back = ("decode", tmp_path / (long + ".npz"), "--run", run, "-o", tmp_path / ("f" * 255))
    assert call(*back) == 0
    assert (tmp_path / ("f" * 255) / (long + ".png")).is_file()
    out = tmp_path / ("o" * (255 - len(suffix)) + suffix)
    assert call("reconstruct", image, "--run", run, "-o", out) == 0
    assert read_image(out).shape == (16, 8, 3)


def test_an_image_that_decode_could_not_name_is_refused(pictures, run, tmp_path, capsys):
    image = tmp_path / ("n" * 252)
    image.write_bytes(pictures[0].read_bytes())
    err = refused(capsys, "encode", image, "--run", run, "-o", tmp_path / "c.npz")
    assert "decoded to a file with a name of 256 bytes, at most 255 are possible" in err
    assert not (tmp_path / "c.npz").exists()


def test_reconstruct_overwrites_only_when_asked(pictures, run, tmp_path, capsys):
    out = tmp_path / "mine.png"
    out.write_text("mine")
    reconstruct = ("reconstruct", pictures[0], "--run", run, "-o", out)
    assert "is not replaced without --overwrite" in refused(capsys, *reconstruct)
    assert out.read_text() == "mine"
    assert call(*reconstruct, "--overwrite") == 0
    assert read_image(out).shape == (19, 30, 3)
