"""The backends: every folder beside this file is one way of running the ops.

A folder describes itself as ``backend``, a :class:`Backend`. :mod:`vqvae_fast.backends.choice`
finds the folders and chooses among them, and :mod:`vqvae_fast.backends.dispatch` registers what is
chosen with torch's dispatcher. So a new backend is a new folder, and nothing else is edited.
"""

from vqvae_fast.backends.backend import Availability, Backend, Kernels
from vqvae_fast.backends.choice import backends, by_name, check, chosen, kernels

__all__ = [
    "Availability",
    "Backend",
    "Kernels",
    "backends",
    "by_name",
    "check",
    "chosen",
    "kernels",
]
