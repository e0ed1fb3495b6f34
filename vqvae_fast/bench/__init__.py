"""Honest timing of searches and layers beside what a user could pick instead.

What ``vqvae-fast bench`` runs, and the suites in the repository's ``benchmarks`` folder: shapes
and data, adapters of peers, checks in float64, interleaved rounds, the machine's own limits.
"""
