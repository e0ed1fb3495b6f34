"""The optional packages: pip install vqvae_fast[train], vqvae_fast[bench]."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed; the message is one sentence that names the extra."""


@contextmanager
def needs_extra(extra: str, user: str) -> Iterator[None]:
    """Imports in this context need packages of an extra; ``user`` is the thing that needs them.

    Raises:
        MissingExtraError: an import does not find a package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "vqvae_fast"):
            raise
        raise MissingExtraError(
            f"{user} needs {package}, which is not installed: pip install vqvae_fast[{extra}]",
            name=package,
        ) from error
