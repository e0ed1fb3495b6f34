"""The search, the layer and the segment sum on a GPU: ``python -m benchmarks.gpu``.

``device`` measures one call, ``contest`` lets contenders take turns, ``search``, ``layer`` and
``sums`` say who competes and check the answers, ``goals`` judges, ``report`` writes the tables.
"""
