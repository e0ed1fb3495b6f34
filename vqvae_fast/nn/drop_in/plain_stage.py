"""What one of many stages does, if it is no more than the default: it then needs no call.

A residual quantizer may run such stages all at once. Each function gives None for a stage that does
more, and for one whose calls something watches.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.drop_in.vector_quantize_call import Call
from vqvae_fast.nn.steps.choosing import Wanted


class PlainStage(NamedTuple):
    """:class:`OnePiece` for one of many stages, which :func:`residual_nearest_with_loss` runs.

    Attributes:
        book: of the stage.
        frozen: whether it learns nothing.
    """

    book: Codebook
    frozen: bool

    @property
    def writes(self) -> bool:
        """As :attr:`Stage.writes`."""
        return self.book.writes()

    def begin(self, residual: Tensor) -> Tensor:
        """As :meth:`Stage.begin`."""
        self.book.prepare(residual[None])
        codes = self.book.codes()
        return (codes.detach() if self.frozen else codes).to(residual.dtype)[0]

    def learn(self, residual: Tensor, indices: Tensor) -> None:
        """As :meth:`Stage.learn`."""
        if not self.frozen:
            self.book.update(residual[None], indices[None])


def plain_stage(stage: VectorQuantize, rows: Tensor, frozen: bool) -> PlainStage | None:
    """What a stage does in training to rows [..., d]: None if it is more than the default.

    The default is the nearest code, the commitment loss, an estimator, averages and expiry.
    """
    book = stage._codebook
    wanted = Wanted(None, stage.sample_codebook_temp, None)
    call = Call(stage, book, rows, None, wanted, frozen)
    plain = (
        stage.training
        and rows.requires_grad
        and stage._routes.in_one_piece(call) is not None
        and not is_watched(stage)
        and not stage.has_codebook_orthogonal_loss
        and not stage.use_cosine_sim
        and not stage.has_projections
        and stage.heads == 1
        and rows.dtype == book.embed.dtype == common_float(rows.dtype, torch.float32)
    )
    return PlainStage(book, frozen) if plain else None


def plain_codes(stage: VectorQuantize, rows: Tensor) -> Tensor | None:
    """The codes [K, d] of a stage that in eval finds the nearest of them to rows [..., d].

    None if it does more.
    """
    book = stage._codebook
    plain = (
        not (torch.is_grad_enabled() and (book.learnable_codebook or rows.requires_grad))
        and finds_nearest_in_eval(stage)
        and rows.dtype == book.embed.dtype == torch.float32
        and not is_watched(stage)
    )
    return book.codes()[0] if plain else None


def finds_nearest_in_eval(stage: VectorQuantize) -> bool:
    """Whether a stage of this kind does no more in eval than find the nearest stored code."""
    book = stage._codebook
    return (
        not stage.has_projections
        and not stage.use_cosine_sim
        and not stage.cosine_search
        and type(book) is Codebook
        and book.vq_bridge is None
    )


def is_watched(stage: VectorQuantize) -> bool:
    """Whether hooks, a subclass or a compiler must see the calls of a stage."""
    hooks = (
        _has_any_global_hook(),
        *(stage._forward_hooks, stage._forward_pre_hooks),
        *(stage._backward_hooks, stage._backward_pre_hooks),
    )
    return (
        any(hooks)
        or "forward" in vars(stage)
        or getattr(stage, "_compiled_call_impl", None) is not None
        or type(stage) is not VectorQuantize
    )
