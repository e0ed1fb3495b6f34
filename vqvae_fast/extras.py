"""Training needs more than the library does; whoever lacks it is told what to install."""

from importlib.util import find_spec

_NEEDED = {"tqdm": "tqdm", "PIL": "pillow", "matplotlib": "matplotlib"}


def check_extras() -> None:
    """Raise at import, not after minutes of training when the first picture is drawn."""
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"vqvae_fast.training needs {', '.join(missing)}: pip install vqvae_fast[train]",
            name=missing[0],
        )
