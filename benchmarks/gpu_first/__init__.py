"""The first half hour on a GPU: ``make gpu-first``, or ``python -m benchmarks.gpu_first``.

A run is a list of *parts* (`plan`), each in a process of its own (`child`) that a supervisor
watches (`supervise`): a crash, a hang or a bad memory access ends one *step* of one part, and the
part goes on with the next step. After every row of a step the record (`record`) and the report
(`report`) are written. The supervising side needs only Python's standard library; only the parts
import torch.
"""
