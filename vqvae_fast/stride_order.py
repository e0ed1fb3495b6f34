"""A repair of torch's compiler: Inductor orders the strides of feature maps of changing size.

On a CPU, Inductor gives the tensors around a convolution the channels-last layout. If such a tensor
is a view and is kept for the backward pass, ``torch._inductor.ir.get_fill_order`` sorts its
strides. Strides that depend on a size which changes between calls are expressions such as
``64 * (s0 // 4)``. Only torch's shape environment can compare them, from what it knows about the
sizes, but this caller does not pass it: the compilation stops with "cannot determine truth value of
Relational" (torch 2.13; https://github.com/pytorch/pytorch/issues/185510). Any model that takes a
feature map's vectors to the last dimension and back between two convolutions meets this error, an
``nn.LayerNorm`` as well as a quantizer. The views in question need not be the quantizer's own, so
no other way of writing the quantizers avoids the error.

https://github.com/pytorch/pytorch/pull/185871 proposes the same repair in torch itself. This module
can go when every supported version of torch has it.
"""

import functools
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def order_symbolic_strides() -> None:
    """Repair Inductor if it is loaded; the fakes of the ops call this.

    A fake runs whenever a graph with its op is traced, and Inductor is loaded when it traces a
    graph: the repair is in time, and ``import vqvae_fast`` does not load Inductor for it.
    """
    inductor_ir = sys.modules.get("torch._inductor.ir")
    if hasattr(inductor_ir, "get_fill_order"):
        _repair(inductor_ir)


@functools.cache
def _repair(inductor_ir: ModuleType) -> None:
    """Replace ``get_fill_order``, once."""
    from torch._inductor.virtualized import V

    unrepaired = inductor_ir.get_fill_order

    def get_fill_order(seq: Sequence[Any], shape_env: Any = None) -> Sequence[int]:
        """As torch's, which goes first; if it cannot compare, the graph's shapes decide."""
        try:
            order: Sequence[int] = unrepaired(seq, shape_env)
        except TypeError:
            if shape_env is not None:
                raise
            order = unrepaired(seq, V.graph.sizevars.shape_env)
        return order

    inductor_ir.get_fill_order = get_fill_order  # type: ignore[attr-defined]
