"""Benchmarks: this package against what a user could pick instead, and against the machine.

``python -m benchmarks.search``, ``.layer`` and ``.training`` write benchmarks/results/;
``pytest benchmarks/`` runs the same contenders through pytest-benchmark. See README.md here.
"""
