"""Benchmarks of this package beside the alternatives that a user has, and beside the machine.

``python -m benchmarks.search``, ``.layer`` and ``.training`` write benchmarks/results/;
``pytest benchmarks/`` runs the same contenders through pytest-benchmark. See README.md here.
"""
