"""The steps of a part, and the options that it gets."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# make gpu-first-wheels fills this folder, which is copied with the tree.
WHEELS = Path(__file__).with_name("wheels")
# The wheels that a machine lacks are installed into this folder.
PACKAGES = ROOT / "build" / "gpu_first" / "packages"

# An Emit writes one row of a step's results: names and values of JSON.
Emit = Callable[..., None]


class Step(NamedTuple):
    """One measurement.

    Attributes:
        name: a name in words, unique in its part.
        seconds: the limit after which it is ended.
        run: measures, and emits each row at once.
    """

    name: str
    seconds: float
    run: Callable[[Emit], None]


@dataclass(frozen=True)
class Setting:
    """The options that the parts get.

    Attributes:
        out: the folder of the record.
        rehearse: tiny shapes on the CPU, in Triton's interpreter.
        wheels: the folder with wheels and trained vectors.
        latents: further .npz with z [N, D] and codebook [K, D].
    """

    out: Path
    rehearse: bool = False
    wheels: Path = WHEELS
    latents: list[Path] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the setting as text for the command line of a part's process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        """Parse the result of :meth:`to_json`."""
        given: dict[str, Any] = json.loads(text)
        paths = {name: Path(given[name]) for name in ("out", "wheels")}
        return cls(**given | paths | {"latents": [Path(path) for path in given["latents"]]})
