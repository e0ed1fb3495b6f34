"""The default data: photographs that scikit-image and scikit-learn carry in their wheels."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vqvae_fast.errors import UserError
from vqvae_fast.training.data.crops import ImageData
from vqvae_fast.training.data.folder import open_files

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")

# name: (package, folder in it, file). All of these files lie inside the wheels. skimage.data would
# download its other pictures on first use, so the files are read without that module.
PHOTOGRAPHS: dict[str, tuple[str, str, str]] = {
    "astronaut": (*_SKIMAGE, "astronaut.png"),
    "coffee": (*_SKIMAGE, "coffee.png"),
    "chelsea": (*_SKIMAGE, "chelsea.png"),
    "rocket": (*_SKIMAGE, "rocket.jpg"),
    "motorcycle_left": (*_SKIMAGE, "motorcycle_left.png"),
    "motorcycle_right": (*_SKIMAGE, "motorcycle_right.png"),
    "hubble_deep_field": (*_SKIMAGE, "hubble_deep_field.jpg"),
    "retina": (*_SKIMAGE, "retina.jpg"),
    "ihc": (*_SKIMAGE, "ihc.png"),
    "china": (*_SKLEARN, "china.jpg"),
    "flower": (*_SKLEARN, "flower.jpg"),
}

# One of the stereo pair is left out: it shows what is held out of the other.
DEFAULT_PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "hubble_deep_field",
    "retina",
    "china",
    "flower",
)


def open_photos(photographs: Sequence[str], *, crop: int, held_out: float) -> ImageData:
    """Training data of the named photographs; nothing is ever downloaded."""
    if not photographs:
        raise UserError("photographs must name at least one photograph")
    paths = [_locate(name) for name in photographs]
    return open_files(paths, crop=crop, held_out=held_out, noun="photographs")


def _locate(name: str) -> Path:
    if name not in PHOTOGRAPHS:
        raise UserError(f"photographs must be among {', '.join(PHOTOGRAPHS)}, got {name}")
    package, folder, file = PHOTOGRAPHS[name]
    # find_spec finds a package without importing it.
    spec = find_spec(package)
    for root in (spec and spec.submodule_search_locations) or ():
        path = Path(root, folder, file)
        if path.is_file():
            return path
    raise UserError(
        f"the photograph {name} is not here because {package} is not installed with its pictures: "
        "pip install vqvae_fast[train], or give --data FOLDER"
    )
