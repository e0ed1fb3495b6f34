"""Loads a search of the user's own, to be measured beside ours."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vqvae_fast.bench.contest import is_ours, told
from vqvae_fast.bench.peers.base import ResidualPeer, SearchPeer


def search_contender(place: str) -> SearchPeer:
    """Return the search that "module:function" or "file.py:function" names.

    The function takes z [N, D] and codebook [K, D] and returns a call without arguments that
    returns the indices, int64 [N]. Only that call is timed. The name may also be that of a
    :class:`SearchPeer`, which says more about itself.

    Raises:
        ValueError: there is no such module, file or function.
    """
    found = _load(place)
    if isinstance(found, ResidualPeer):
        raise ValueError(f"{place} is a residual quantization, a search was expected")
    peer = found if isinstance(found, SearchPeer) else SearchPeer(place, _timed(place), found)
    return _not_ours(peer)


def residual_contender(place: str) -> ResidualPeer:
    """Return the residual quantization that "module:function" or "file.py:function" names.

    The function takes z [N, D] and codebooks [Q, K, D] and returns a call without arguments that
    returns the indices of all stages, int64 [N, Q]. Only that call is timed. The name may also be
    that of a :class:`ResidualPeer`.

    Raises:
        ValueError: there is no such module, file or function.
    """
    found = _load(place)
    if isinstance(found, SearchPeer):
        raise ValueError(f"{place} is a search, a residual quantization was expected")
    peer = found if isinstance(found, ResidualPeer) else ResidualPeer(place, _timed(place), found)
    return _not_ours(peer)


class _NotThereError(ValueError):
    """The name leads to no module and no file."""


_Peer = TypeVar("_Peer", SearchPeer, ResidualPeer)


def _not_ours(peer: _Peer) -> _Peer:
    if is_ours(peer.name):
        raise ValueError(f"the name of a contender must not begin with 'ours', got {peer.name!r}")
    return peer


def _timed(place: str) -> str:
    return f"the call that {place} returns"


def _load(place: str) -> Any:
    module_name, _, name = place.rpartition(":")
    if not (module_name and name):
        raise ValueError(f"a contender must be MODULE:FUNCTION or FILE.py:FUNCTION, got {place!r}")
    try:
        module = _run(Path(module_name)) if module_name.endswith(".py") else _import(module_name)
    except _NotThereError:
        raise
    except Exception as error:
        hint = "; name a file of a package as MODULE:FUNCTION" if "relative" in str(error) else ""
        raise ValueError(f"{module_name} cannot be imported: it {told(error)}{hint}") from error
    if not hasattr(module, name):
        raise ValueError(f"{module_name} has no function {name} to measure")
    found = getattr(module, name)
    if not (callable(found) or isinstance(found, SearchPeer | ResidualPeer)):
        raise ValueError(f"a contender must be a function, {place} has type {type(found).__name__}")
    return found


def _import(name: str) -> ModuleType:
    """Imports a module, also one of the current folder, where a command does not look itself."""
    with _looking_in(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
            raise _NotThereError(
                f"there is no module {error.name} to take a contender from"
            ) from error


def _run(path: Path) -> ModuleType:
    """Runs a file as a module, which may import its neighbours."""
    if not path.is_file():
        raise _NotThereError(f"there is no file {path} to take a contender from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _NotThereError(f"Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    with _looking_in(path.parent.resolve()):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _looking_in(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
