"""The version of the package, and of what its compiled extensions must offer it.

setup.py and pyproject.toml read this file, and the extensions are built with both numbers in them.
"""

__version__ = "0.1.0"

# Raise it with every change to the functions or ops of an extension: older builds are then refused.
EXTENSION_CONTRACT = 2
