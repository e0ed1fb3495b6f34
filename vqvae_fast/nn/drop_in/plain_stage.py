"""What one of many stages does, if it is no more than the default: it then needs no call.

A residual quantizer may run such stages all at once. Each function gives None for a stage that does
more, and for one whose calls something watches.
"""

from collections.abc import Sequence
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

    def writes(self) -> bool:
        """As :meth:`Stage.writes`."""
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
        weight_in: [D, C], leads to the codes; bias_in: [D].
        weight_out: [C, D], leads back; bias_out: [C].
        codes: [1, K, D].
        search: the search.
        book: the codes' module.
    """

    weight_in: Tensor
    bias_in: Tensor | None
    weight_out: Tensor
    bias_out: Tensor | None
    codes: Tensor
    search: Best
    book: Codebook

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the stage is made of."""
        return self[:5]

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, N, C] -> what :meth:`VectorQuantize.forward` gives: [B, N, C], [B, N]."""
        rows = nn_functional.linear(vectors, self.weight_in, self.bias_in)[None]
        packed = self.book.packed(self.search.compared)
        if packed is None:
            chosen = self.search.choose(rows, self.book.codes(), _ONE_CODE)
        else:
            chosen = self.search.choose_packed(rows, self.book.codes, packed)
        quantized = nn_functional.linear(chosen.quantized[0], self.weight_out, self.bias_out)
        return quantized, chosen.indices[0]


_ONE_CODE = Wanted(None, 0.0, None)


def projected_stages(
    stages: Sequence[VectorQuantize], vectors: Tensor
) -> list[ProjectedStage] | None:
    """What stages do in eval to vectors [B, N, C]; None if one does more, or has a gradient."""
    if torch.is_grad_enabled() or vectors.dtype != torch.float32 or _has_any_global_hook():
        return None
    projected = []
    for stage in stages:
        parts = stage._modules  # as in plain_codes, because a part is found by its name slowly
        book, into, out = parts["_codebook"], parts["project_in"], parts["project_out"]
        if (
            stage.training
            or not stage.has_projections
            or stage.use_cosine_sim
            or stage.heads > 1
            or _has_own_calls(stage, VectorQuantize)
            or _has_own_calls(into, nn.Linear)
            or _has_own_calls(out, nn.Linear)
        ):
            return None
        book = cast("Codebook", book)
        if not _stores_codes(book):
            return None
        weight_in, bias_in = _weight_and_bias(cast("nn.Linear", into))
        weight_out, bias_out = _weight_and_bias(cast("nn.Linear", out))
        learned = book._parameters.get("embed")
        codes = book.embed if learned is None else learned
        if codes.dtype != torch.float32 or weight_in.dtype != torch.float32:
            return None
        best = stage._routes.best
        projected.append(
            ProjectedStage(weight_in, bias_in, weight_out, bias_out, codes, best, book)
        )
    return projected


def _weight_and_bias(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    parameters = linear._parameters
    weight = parameters.get("weight")
    if weight is None:  # an attribute, as in the replicas of DataParallel
        return linear.weight, linear.bias
    return weight, parameters["bias"]


def _stores_codes(book: Codebook) -> bool:
    """Whether the codes are used as they are stored."""
    return type(book) is Codebook and book.vq_bridge is None


def is_watched(module: nn.Module, kind: type[nn.Module] = VectorQuantize) -> bool:
    """Whether hooks, a subclass of its kind or a compiler must see the calls of a module."""
    return _has_own_calls(module, kind) or _has_any_global_hook()


def _has_own_calls(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """As :func:`is_watched`, but for hooks of all modules."""
    if type(module) is not kind:
        return True
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or module._compiled_call_impl is not None
    )
