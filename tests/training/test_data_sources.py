from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from vqvae_fast.training import UserError, open_data
from vqvae_fast.training.data import folder as folder_module

RECORD = 1 + 3 * 32 * 32


def write_cifar10(folder: Path, rng: np.random.Generator, records: int = 3) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    values = rng.integers(256, size=(6, records, RECORD), dtype=np.uint8)
    for name, batch in zip(names, values, strict=True):
        (folder / name).write_bytes(batch.tobytes())
    return values


def test_folder_is_read_recursively_and_hidden_or_other_files_are_left_out(make_image, tmp_path):
    for name in ("in/a.png", "in/deep/er/b.JPG", "in/.hidden.png", "in/.git/c.png"):
        make_image(name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    data = open_data(str(tmp_path / "in"), crop=16)
    assert data.description.startswith("2 images")
    assert data.batch(0, 0, 3).shape == (3, 3, 16, 16)


def test_folder_of_narrow_images_holds_whole_images_out(make_image, tmp_path):
    for i in range(10):
        make_image(f"in/{i}.png", 32, 32)
    data = open_data(str(tmp_path / "in"))
    assert (len(data.train), len(data.held_out)) == (8, 2)
    assert not set(data.train.boxes[:, 0]) & set(data.held_out.boxes[:, 0])


def test_images_beyond_the_memory_budget_are_decoded_when_drawn(make_image, tmp_path, monkeypatch):
    for i in range(4):
        make_image(f"in/{i}.png")
    kept = open_data(str(tmp_path / "in"), crop=16)
    monkeypatch.setattr(folder_module, "_KEEP_BYTES", 80 * 40 * 3 + 1)
    lean = open_data(str(tmp_path / "in"), crop=16)
    assert len(lean.train.images._kept) == 1
    assert torch.equal(kept.batch(0, 0, 8), lean.batch(0, 0, 8))
    assert kept.variance() == lean.variance()


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparent_images_become_colour(make_image, tmp_path, mode):
    make_image("in/a.png", mode=mode)
    assert open_data(str(tmp_path / "in"), crop=16).train.read(0).shape == (40, 64, 3)


def test_images_are_turned_upright(tmp_path):
    (tmp_path / "in").mkdir()
    image = Image.new("RGB", (80, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "in" / "turned.jpg", exif=exif)
    data = open_data(str(tmp_path / "in"), crop=8, held_out=0.2)
    assert data.train.boxes[0].tolist() == [0, 0, 0, 80, 32]
    assert data.train.read(0).shape == (80, 32, 3)


def test_folder_errors_are_one_sentence_with_the_file(make_image, tmp_path):
    with pytest.raises(UserError, match="data not found"):
        open_data(str(tmp_path / "nowhere"))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_data(str(tmp_path / "in"))
    make_image("in/small.png", 80, 20)
    with pytest.raises(UserError, match=r"small\.png is too small for crops of 32.*80x20"):
        open_data(str(tmp_path / "in"))
    (tmp_path / "in" / "small.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"small\.png is not an image"):
        open_data(str(tmp_path / "in"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image_is_found_before_training(make_image, tmp_path, suffix):
    path = make_image(f"in/cut{suffix}", 200, 100)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=f"cut{suffix} cannot be read"):
        open_data(str(tmp_path / "in"))


def test_cifar10_pixels_are_where_the_format_says(tmp_path, rng):
    values = write_cifar10(tmp_path / "cifar", rng)
    data = open_data(f"cifar10:{tmp_path / 'cifar'}")
    assert (len(data.train), len(data.held_out)) == (15, 3)
    # record 1 of batch 2, green, row 4, column 5
    assert data.train.read(4)[4, 5, 1] == values[1, 1, 1 + 1024 + 4 * 32 + 5]
    np.testing.assert_array_equal(
        data.held_out.read(0), values[5, 0, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
    )


def test_cifar10_errors(tmp_path, rng):
    with pytest.raises(UserError, match="folder not found"):
        open_data(f"cifar10:{tmp_path / 'cifar'}")
    write_cifar10(tmp_path / "cifar", rng)
    path = tmp_path / "cifar" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_3\.bin must hold records of 3073 bytes"):
        open_data(f"cifar10:{tmp_path / 'cifar'}")
    path.unlink()
    with pytest.raises(UserError, match=r"data_batch_3\.bin is missing"):
        open_data(f"cifar10:{tmp_path / 'cifar'}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_array_layouts_and_dtypes_are_the_same_images(tmp_path, rng, channels, dtype):
    images = rng.integers(256, size=(10, 20, 24, channels), dtype=np.uint8)
    stored = images if dtype == "uint8" else (images / 255).astype(dtype)
    np.save(tmp_path / "last.npy", stored)
    np.savez(tmp_path / "first.npz", images=stored.transpose(0, 3, 1, 2), labels=np.arange(10))
    last = open_data(str(tmp_path / "last.npy"))
    first = open_data(str(tmp_path / "first.npz"))
    assert last.channels == channels
    assert last.crop == 20
    assert torch.equal(last.batch(0, 0, 6), first.batch(0, 0, 6))
    expected = images.astype(np.float32) / 127.5 - 1
    found = last.held_out.crops(np.random.default_rng(0), 1, 20, last.channels).numpy()[0, 0]
    rows = [e[:20, i : i + 20, 0] for e in expected for i in range(5)]
    assert min(abs(found - r[:, ::s]).max() for r in rows for s in (1, -1)) < 2e-3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 32, 32), np.uint8), r"\[N, H, W, C\].*got \[4, 32, 32\]"),
        (np.zeros((4, 32, 32, 2), np.uint8), "1 or 3 channels"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"got \[0, 32, 32, 3\]"),
        (np.zeros((4, 32, 32, 3), np.int64), "uint8 or float, got int64"),
        (np.full((4, 32, 32, 3), 255.0), "from 255 to 255; scale"),
        (np.full((4, 32, 32, 3), -0.5), "scale the images"),
        (np.full((4, 32, 32, 3), np.nan), "scale the images"),
        (np.zeros((4, 3, 3, 3), np.uint8), "at least 4 pixels"),
        (np.zeros((1, 32, 32, 3), np.uint8), "cannot be divided"),
        (np.array([{"an": "object"}]), "cannot be read"),
    ],
)
def test_unsuitable_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(UserError, match=message):
        open_data(str(tmp_path / "bad.npy"))


def test_array_file_errors(tmp_path):
    path = tmp_path / "cut.npy"
    np.save(path, np.zeros((4, 32, 32, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        open_data(str(path))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 8, 8, 3)), b=np.zeros((2, 8, 8, 3)))
    with pytest.raises(UserError, match=r"one array.*a \[2, 8, 8, 3\], b"):
        open_data(str(tmp_path / "two.npz"))
    (tmp_path / "x.npz").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="cannot be read as a NumPy file: File is not a zip file"):
        open_data(str(tmp_path / "x.npz"))
    for name, save in (("x.npy", np.save), ("x.npz", np.savez)):
        save(tmp_path / name, np.full((2, 8, 8, 3), None))
        with pytest.raises(UserError, match=r"it is not one, or holds Python objects$"):
            open_data(str(tmp_path / name))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"a \.npy or a \.npz"):
        open_data(str(tmp_path / "x.csv"))


class Pairs(Dataset):
    """(image, label), as torchvision's datasets give them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], 0


def test_datasets_give_the_images_of_their_tensors():
    images = torch.rand(10, 3, 16, 16)
    pairs, tensors = open_data(Pairs(images)), open_data(TensorDataset(images))
    assert torch.equal(pairs.batch(0, 0, 4), tensors.batch(0, 0, 4))
    assert torch.allclose(
        torch.from_numpy(pairs.train.read(0).transpose(2, 0, 1).copy()), images[0]
    )
    split = open_data(Pairs(images), validation=Pairs(images[:3]))
    assert (len(split.train), len(split.held_out)) == (10, 3)


def test_unsuitable_datasets_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 16, 16)

    with pytest.raises(UserError, match="IterableDataset"):
        open_data(Stream())
    with pytest.raises(UserError, match="empty"):
        open_data(Pairs(torch.zeros(0, 3, 16, 16)))
    with pytest.raises(UserError, match="scale the images"):
        open_data(Pairs(torch.full((4, 3, 16, 16), 2.0)))

    class Growing(Pairs):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(3, 16, 16 - index)

    with pytest.raises(UserError, match="one size"):
        open_data(Growing(torch.zeros(10, 3, 16, 16))).variance()


@pytest.mark.parametrize("first", [1, 3])
def test_datasets_of_mixed_channels_are_refused_by_the_first_batch(first):
    odd = 4 - first
    pictures = [torch.rand(first if i < 5 else odd, 16, 16) for i in range(10)]
    data = open_data(pictures, held_out=0.2)
    with pytest.raises(
        UserError, match=rf"all images must have {first} channels, got one with {odd}"
    ):
        data.batch(0, 0, 64)


def test_a_dataset_of_dicts_is_told_its_keys():
    items = [{"image": torch.rand(3, 16, 16), "label": 0}] * 10
    for found in (items, [(item, 0) for item in items]):
        with pytest.raises(
            UserError,
            match=r"must be an image or a tuple .* got a dict with the keys 'image', 'label'$",
        ):
            open_data(found)
