"""Reads tile sizes from a file: a sweep's result for a device, instead of the package's own.

The file is JSON, as ``make gpu-first`` writes it, and ``VQVAE_FAST_TILES`` names it:

    {"architectures": {"90": {"float16": {"64": {"block_rows": 128, ...}}}}}

By architecture (Triton's number or name), packed dtype and block_dim; each entry holds every field
of a Configuration. Everything that the file does not mention keeps the package's sizes.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from vqvae_fast import settings
from vqvae_fast.settings import UnknownSettingError

_Configuration = TypeVar("_Configuration", bound=NamedTuple)
# Larger tiles do not fit shared memory and registers; Triton's products need 16 of each.
_MOST = {"num_warps": 16, "num_stages": 8}
_LEAST_BLOCK, _MOST_BLOCK = 16, 512


def tuned(config: _Configuration, arch: int | str, dtype: torch.dtype) -> _Configuration:
    """The file's configuration instead of ``config``, or ``config`` if it has none.

    Raises:
        ValueError: the file cannot be read, or an entry is no configuration for these rows.
    """
    path = settings.current.tiles
    if path is None:
        return config
    entries = _architectures(path).get(str(arch), {}).get(str(dtype).removeprefix("torch."), {})
    block_dim = config._asdict()["block_dim"]
    entry = entries.get(str(block_dim))
    if entry is None:
        return config
    if problem := _problem(entry, config._fields, block_dim):
        where = f"{arch}, {str(dtype).removeprefix('torch.')}, {block_dim}"
        raise UnknownSettingError(f"VQVAE_FAST_TILES={path}: the entry for {where} {problem}")
    return config._replace(**entry)


@functools.cache
def _architectures(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        problem = f"VQVAE_FAST_TILES={path} must be a JSON file: {error}"
        raise UnknownSettingError(problem) from error
    tables = found.get("architectures") if isinstance(found, dict) else None
    if not isinstance(tables, dict) or not all(
        isinstance(of_dtype, dict) and all(isinstance(table, dict) for table in of_dtype.values())
        for of_dtype in tables.values()
    ):
        raise UnknownSettingError(
            f'VQVAE_FAST_TILES={path} must hold {{"architectures": {{architecture: {{dtype: '
            "{block_dim: configuration}}}}"
        )
    return tables


def _problem(entry: Any, fields: tuple[str, ...], block_dim: int) -> str:
    """What is wrong with an entry, as the end of a sentence; "" if nothing is."""
    if not isinstance(entry, dict) or set(entry) != set(fields):
        return f"must have the fields {', '.join(fields)}, got {entry!r}"
    for name, value in entry.items():
        is_block = name.startswith("block_")
        least, most = (_LEAST_BLOCK, _MOST_BLOCK) if is_block else (1, _MOST.get(name, _MOST_BLOCK))
        if type(value) is not int or not least <= value <= most:
            return f"must have {name} from {least} to {most}, got {value!r}"
        if name != "num_stages" and value & (value - 1):
            return f"must have a power of two as {name}, got {value}"
    if entry["block_dim"] != block_dim:
        return f"must have block_dim {block_dim}, got {entry['block_dim']}"
    if entry["group"] > entry["block_codes"]:
        return f"must have group at most block_codes, got {entry['group']}"
    return ""
