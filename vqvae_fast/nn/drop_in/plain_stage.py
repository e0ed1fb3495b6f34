"""What one of many stages does, if it is no more than the default: it then needs no call.

A residual quantizer may run such stages all at once. Each function gives None for a stage that does
more, and for one whose calls something watches.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional
from torch.nn.modules.module import _has_any_global_hook

from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.drop_in.vector_quantize_call import Call
from vqvae_fast.nn.steps.choosing import Best, Wanted


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
    """The codes [1, K, d] of a stage that in eval finds the nearest of them to rows [..., d].

    They are as they are stored, and may require a gradient. None if the stage does more. In eval
    the vectors get no gradient from the codes, whether they require one or not.
    """
    # This runs for each stage of each call, and nn.Module finds a part by its name slowly.
    book = cast("Codebook", stage._modules["_codebook"])
    if stage.training or (torch.is_grad_enabled() and book.learnable_codebook):
        return None
    if not finds_nearest_in_eval(stage, book) or is_watched(stage):
        return None
    embed = book._buffers.get("embed")
    embed = book.embed if embed is None else embed
    return embed if rows.dtype == embed.dtype == torch.float32 else None


def finds_nearest_in_eval(stage: VectorQuantize, book: Codebook) -> bool:
    """Whether a stage with this book does no more in eval than find the nearest stored code."""
    return (
        not stage.has_projections
        and not stage.use_cosine_sim
        and not stage.cosine_search
        and _stores_codes(book)
    )


class ProjectedStage(NamedTuple):
    """What a stage does in eval that projects vectors, finds a code and projects it back.

    Attributes:
        into: the weight and the bias that lead to the codes.
        out: those that lead back.
        search: the search.
        book: the codes.
    """

    into: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    search: Best
    book: Codebook

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, N, D] -> what :meth:`VectorQuantize.forward` gives: [B, N, D], [B, N]."""
        rows = nn_functional.linear(vectors, *self.into)[None]
        packed = self.book.packed(self.search.compared)
        if packed is None:
            chosen = self.search.choose(rows, self.book.codes(), _ONE_CODE)
        else:
            chosen = self.search.choose_packed(rows, self.book.codes, packed)
        return nn_functional.linear(chosen.quantized[0], *self.out), chosen.indices[0]


_ONE_CODE = Wanted(None, 0.0, None)


def projected_stage(stage: VectorQuantize, vectors: Tensor) -> ProjectedStage | None:
    """What a stage does in eval to vectors [B, N, D]; None if it is more, or has a gradient."""
    if (
        torch.is_grad_enabled()
        or stage.training
        or not stage.has_projections
        or stage.use_cosine_sim
        or stage.heads > 1
        or is_watched(stage)
    ):
        return None
    book, into, out = stage._codebook, stage.project_in, stage.project_out
    if not _stores_codes(book) or is_watched(into, nn.Linear) or is_watched(out, nn.Linear):
        return None
    assert isinstance(into, nn.Linear)
    assert isinstance(out, nn.Linear)
    weights = (into.weight, into.bias), (out.weight, out.bias)
    narrow = any(part.dtype != torch.float32 for part in (vectors, book.embed, weights[0][0]))
    return None if narrow else ProjectedStage(*weights, stage._routes.best, book)


def _stores_codes(book: Codebook) -> bool:
    """Whether the codes are used as they are stored."""
    return type(book) is Codebook and book.vq_bridge is None


def is_watched(module: nn.Module, kind: type[nn.Module] = VectorQuantize) -> bool:
    """Whether hooks, a subclass of its kind or a compiler must see the calls of a module."""
    return (
        type(module) is not kind
        or bool(module._forward_hooks or module._forward_pre_hooks)
        or bool(module._backward_hooks or module._backward_pre_hooks)
        or "forward" in vars(module)
        or getattr(module, "_compiled_call_impl", None) is not None
        or _has_any_global_hook()
    )
