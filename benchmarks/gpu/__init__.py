"""Times search, layer and segment sum on a GPU: ``python -m benchmarks.gpu``.

``device`` measures one call, ``contest`` lets contenders take turns, ``search``, ``layer`` and
``sums`` name the contenders and check the answers, ``goals`` judges, ``report`` writes the tables.
"""
