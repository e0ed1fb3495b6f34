"""setuptools' build backend, which requires torch only of builds that compile.

With VQVAE_FAST_NO_EXT=1 an isolated build, such as that of `pip install .`, fetches no torch.
"""

import os

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  what a build frontend calls
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# setup.py compiles against this torch, whose headers name numpy's.
TO_COMPILE = ["ninja", "numpy", "torch>=2.10"]


def _to_compile() -> list[str]:
    return [] if os.environ.get("VQVAE_FAST_NO_EXT") == "1" else TO_COMPILE


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """What an isolated build of a wheel installs beside setuptools."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _to_compile()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """The same for an editable install."""
    return build_meta.get_requires_for_build_editable(config_settings) + _to_compile()
