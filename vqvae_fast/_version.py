"""The version of the package, and of what its compiled extensions must offer it.

setup.py and pyproject.toml read this file, and the extensions are built with both numbers in them.
"""

__version__ = "0.1.0"

# Raise it with every change to an extension's functions or ops: older builds are then refused.
EXTENSION_CONTRACT = 7
