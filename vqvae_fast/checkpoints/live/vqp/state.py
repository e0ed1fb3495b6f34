"""Copies all state of a live module into ours."""

import copy

import torch
from torch import nn

from vqvae_fast.nn.codebook.averages import BatchSums
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize


@torch.no_grad()
def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Copy the state of a live module of vector-quantize-pytorch into ours of the same structure.

    This is more than the state dict: also which parameters require a gradient, which parts are in
    eval, the state of in-place optimizers, and batches that ``accum_ema_update`` has put aside.
    Gradients are not copied, nor hooks.

    Args:
        source: the live module.
        target: ours, made with :func:`constructor_arguments`, on the same device.
    """
    target.load_state_dict(source.state_dict())
    required = dict(source.named_parameters(remove_duplicate=False))
    for name, parameter in target.named_parameters(remove_duplicate=False):
        if name in required:  # options of the caller may make a parameter of a buffer
            parameter.requires_grad_(required[name].requires_grad)
    parts = dict(source.named_modules(remove_duplicate=False))
    target.train(source.training)
    for name, part in target.named_modules(remove_duplicate=False):
        theirs = parts.get(name)
        if theirs is None:
            continue
        if part.training != theirs.training:
            part.train(theirs.training)
        if isinstance(part, VectorQuantize) and part.in_place_codebook_optimizer is not None:
            state = copy.deepcopy(theirs.in_place_codebook_optimizer.state_dict())
            part.in_place_codebook_optimizer.load_state_dict(state)
        if isinstance(part, Codebook):
            part.pending = _put_aside(theirs)


def _put_aside(codebook: nn.Module) -> BatchSums | None:
    """What ``accum_ema_update`` has left in the gradients of the buffers."""
    counts, sums = codebook.cluster_size.grad, codebook.embed_avg.grad
    if counts is None or sums is None:
        return None
    return BatchSums(counts.clone(), sums.clone())  # type: ignore[operator]
