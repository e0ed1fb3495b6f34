"""Times searches and layers beside the alternatives that a user has.

``vqvae-fast bench`` and the suites in the repository's ``benchmarks`` folder use this package. It
has shapes and data, adapters of peers, checks in float64, interleaved rounds, and measurements of
the machine's limits.
"""
