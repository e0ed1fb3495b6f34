"""The ways through the stages of ResidualVQ, one of which serves a call.

A quantizer makes its routes once and tries them in their order: ``run`` gives None where another
route is to serve the call. Each says from top to bottom what a call does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.autocast import is_autocast, without_autocast
from vqvae_fast.autograd.estimators import directional_reparam
from vqvae_fast.autograd.residual_nearest_with_loss import residual_nearest_with_loss
from vqvae_fast.nn.codebook.kept_pack import KeptForm, KeptPack
from vqvae_fast.nn.codebook.undoing import Runs, undone_unless
from vqvae_fast.nn.drop_in.composed_stages import ComposedStages, composed_stages
from vqvae_fast.nn.drop_in.plain_stage import (
    PlainStage,
    plain_codes,
    plain_stage,
    projected_stages,
)
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.beams import Beams
from vqvae_fast.nn.steps.quantize_dropout import QuantizeDropout, left_out_unless
from vqvae_fast.nn.steps.regularisers import masked_mean


class Stages(NamedTuple):
    """The stages of a quantizer, and what lies between them.

    Attributes:
        layers: the Q stages.
        mlps: Q - 1 of them, which make the codes of all stages but the first; None for no change.
        dropout: draws the last stage in training.
        quant_grad_frac: share of a stage's gradient that reaches the stages before it.
        beam_weights: of the stages' errors in the score of a way to quantize a vector.
        kept_pack: keeps the packed books of a frozen quantizer.
        composition: keeps the stages of a frozen quantizer whose projections are composed.
    """

    layers: Sequence[VectorQuantize]
    mlps: Sequence[Callable[..., Tensor] | None]
    dropout: QuantizeDropout | None
    quant_grad_frac: float
    beam_weights: Sequence[float]
    kept_pack: KeptPack | None = None
    composition: KeptForm[ComposedStages] | None = None

    def runs(self, number: int, last: int | Tensor) -> Runs:
        """Whether a stage runs where ``last`` is the last."""
        return True if self.dropout is None else self.dropout.runs(number, last)

    def transform(self, number: int, quantized: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What makes the codes of a stage, given what those before it have quantized."""
        mlp = self.mlps[number - 1] if number > 0 else None
        return None if mlp is None else functools.partial(mlp, condition=quantized)

    def passed(self, quantized: Tensor) -> Tensor:
        """What is subtracted, with the share of the gradient that may pass."""
        fraction = self.quant_grad_frac
        if fraction <= 0:
            return quantized.detach()
        return fraction * quantized + (1 - fraction) * quantized.detach()


class StagesCall(NamedTuple):
    """Vectors, and what is to be done with them.

    Attributes:
        start: [B, N, d].
        mask: bool [B, N], False for padding.
        training: whether the stages learn, unless frozen.
        frozen: whether the codes are constants.
        temperature: at which stages that draw codes draw them, instead of their own.
        beam_size: how many ways to quantize a vector are followed.
        last: index of the last stage that runs; a tensor where only the device knows it.
        right: [B, N, Q], codes whose cross-entropy is asked for.
    """

    start: Tensor
    mask: Tensor | None
    training: bool
    frozen: bool
    temperature: float | None
    beam_size: int
    last: int | Tensor
    right: Tensor | None

    def options(self) -> dict[str, Any]:
        """What every stage is told."""
        return {"sample_codebook_temp": self.temperature, "freeze_codebook": self.frozen}


class StagesOutcome(NamedTuple):
    """What a route gives.

    Attributes:
        total: [B, N, d], the sum of the codes.
        indices: [B, N, Q]; nothing with ``right`` codes.
        losses: [Q]; 0-d, the sum of the cross-entropies, with ``right`` codes.
        inputs: what each stage that ran was given, where a later step asks for it.
    """

    total: Tensor
    indices: Tensor
    losses: Tensor
    inputs: list[Tensor]


class StagesRoute(Protocol):
    """One way through the stages."""

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """Quantize in all stages, of which each may learn; None where another route serves."""


class WithTargets:
    """The cross-entropies of the codes that are right."""

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        if call.right is None:
            return None
        residual, total = call.start, torch.zeros_like(call.start)
        losses = []
        for number, stage in enumerate(stages.layers):
            quantized, loss = stage(
                residual,
                mask=call.mask,
                indices=call.right[..., number],
                codebook_transform_fn=stages.transform(number, total),
                **call.options(),
            )
            residual = residual - stages.passed(quantized)
            total = total + quantized
            losses.append(loss)
        return StagesOutcome(total, call.right, torch.stack(losses).sum(), [])


class ByBeams:
    """Several ways to quantize each vector at once; the best of them counts."""

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        if call.beam_size <= 1:
            return None
        best, scored = self._search(stages, call)
        losses = torch.stack(
            [masked_mean(part[..., None], call.mask) for part in best.losses.unbind(-1)]
        )
        losses = losses if scored else torch.zeros_like(losses)
        inputs = list(best.inputs.unbind(dim=-2))
        if call.training and not call.frozen:
            for number, (given, chosen) in enumerate(
                zip(inputs, best.indices.unbind(-1), strict=True)
            ):
                stage = stages.layers[number]
                step = functools.partial(
                    stage.update_indices, given, chosen.clamp(min=0), mask=call.mask
                )
                undone_unless(stages.runs(number, call.last), stage.written, step)
        missing = (0, len(stages.layers) - len(inputs))
        found = torch.nn.functional.pad(best.indices, missing, value=-1)
        losses = torch.nn.functional.pad(losses, missing)
        return StagesOutcome(best.quantized, found, losses, inputs)

    def _search(self, stages: Stages, call: StagesCall) -> tuple[Beams, bool]:
        """The best way, and whether the stages have losses by which it was chosen."""
        mask, last, size = call.mask, call.last, call.beam_size
        beams = ended = Beams.start(call.start)
        scored = True
        for number, stage in enumerate(stages.layers):
            runs = stages.runs(number, last)
            if runs is False:
                break
            ways = beams.residual.shape[2]
            step = functools.partial(
                stage,
                beams.residual,
                mask=None if mask is None else mask[..., None].expand(*mask.shape, ways),
                codebook_transform_fn=stages.transform(number, beams.quantized.flatten(1, 2)),
                topk=size,
                **call.options(),
            )
            quantized, chosen, loss = undone_unless(runs, stage.written, step)
            scored = loss.dim() > 0
            if not scored:  # without a commitment loss there is still a distance
                loss = (quantized - beams.residual.unsqueeze(3)).square().mean(dim=-1).detach()
            taken = stages.passed(quantized)
            beams = beams.extended(quantized, taken, chosen, loss, stages.beam_weights[number])
            if isinstance(runs, Tensor):
                ended = beams.best(1).ended_before(runs, ended)
            elif isinstance(last, Tensor) or number == last:
                ended = beams.best(1)
            beams = beams.best(size)
        return Beams(*(part[:, :, 0] for part in ended)), scored


class AtOnce:
    """One call for all stages in eval, where there is nothing but nearest codes to find.

    It keeps what is left in float32, and so gives what the stages give to float32 vectors.
    """

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        if call.training or call.mask is not None:
            return None
        books: list[Tensor] = []
        for stage in stages.layers:
            book = plain_codes(stage, call.start)
            if book is None:
                # As KeptPack.of does for a call with a gradient for the codes.
                if stages.kept_pack is not None:
                    stages.kept_pack.drop()
                return None
            books.append(book)
        packed = None
        if stages.kept_pack is not None and len({book.shape for book in books}) == 1:
            packed = stages.kept_pack.of(books, lambda: torch.cat(books))
        rows = call.start.detach()
        if packed is not None:
            found, total = functional.residual_nearest_code(rows, packed)
        elif rows.device.type == "cpu":
            found, total = self._one_by_one(rows, books)
        else:
            found, total = functional.residual_nearest_code(rows, torch.cat(books))
        return StagesOutcome(total, found, total.new_zeros(len(books)), [])

    @staticmethod
    def _one_by_one(rows: Tensor, books: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same searches without a copy of all books, which would take longer than they do."""
        residual, total = rows, torch.zeros_like(rows)
        chosen = []
        for book in books:
            quantized, indices, _ = torch.ops.vqvae_fast.quantize(residual, book.detach()[0])
            residual = residual - quantized
            total = total + quantized
            chosen.append(indices)
        return torch.stack(chosen, dim=-1), total


class Projected:
    """Eval of stages that project vectors, find codes and project them back, without their calls.

    The stages get the vectors side by side, because products with a transposed matrix of channels
    take several times as long. Stages that are composed need none of these products.
    """

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        device = call.start.device.type
        if call.training or call.mask is not None or is_autocast(device):
            return None
        plain = projected_stages(stages.layers, call.start)
        kept = stages.composition
        if plain is None:
            if kept is not None:  # as AtOnce does
                kept.drop()
            return None
        composed = None if kept is None else composed_stages(plain, kept)
        if composed is not None:
            found, total = composed.quantize(call.start)
            return StagesOutcome(total, found, total.new_zeros(len(plain)), [])
        residual = call.start.clone(memory_format=torch.contiguous_format)
        total = torch.zeros_like(residual)
        chosen = []
        for as_plain in plain:
            quantized, indices = as_plain.quantize(residual)
            residual -= quantized
            total += quantized
            chosen.append(indices)
        found = torch.stack(chosen, dim=-1)
        return StagesOutcome(total, found, total.new_zeros(len(plain)), [])


class PlainStages:
    """Training in one piece, where no stage does more than the default: it keeps less memory."""

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        asks_for_more = call.mask is not None or call.temperature is not None
        if not call.training or asks_for_more:
            return None
        if stages.dropout is not None or stages.quant_grad_frac > 0:
            return None
        if len({(stage.commitment_weight, stage.rotation_trick) for stage in stages.layers}) > 1:
            return None
        plain: list[PlainStage] = []
        for stage in stages.layers:
            as_plain = plain_stage(stage, call.start, call.frozen)
            if as_plain is None:
                return None
            plain.append(as_plain)
        first = stages.layers[0]
        with without_autocast(call.start.device.type):
            total, indices, commitments = residual_nearest_with_loss(
                call.start, plain, rotates=first.rotation_trick
            )
        return StagesOutcome(total, indices, commitments * first.commitment_weight, [])


class StageByStage:
    """A call of each stage; it serves all that the other routes leave."""

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome:
        """As :meth:`StagesRoute.run`."""
        residual, total = call.start, torch.zeros_like(call.start)
        inputs: list[Tensor] = []
        indices: list[Tensor] = []
        losses: list[Tensor] = []
        for number, stage in enumerate(stages.layers):
            runs = stages.runs(number, call.last)
            if runs is False:
                indices.append(torch.full_like(indices[0], -1))
                losses.append(torch.zeros_like(losses[0]))
                continue
            inputs.append(residual)
            step = functools.partial(
                stage,
                residual,
                mask=call.mask,
                codebook_transform_fn=stages.transform(number, total),
                **call.options(),
            )
            quantized, chosen, loss = left_out_unless(
                runs, *undone_unless(runs, stage.written, step)
            )
            residual = residual - stages.passed(quantized)
            total = total + quantized
            indices.append(chosen)
            losses.append(loss)
        return StagesOutcome(total, torch.stack(indices, dim=-1), torch.stack(losses), inputs)


class WithSharedBook:
    """Another route for stages that share a book, which learns once from what they all got."""

    def __init__(self, route: StagesRoute):
        self.route = route

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        outcome = self.route.run(stages, call)
        if outcome is not None and call.training and not call.frozen and call.right is None:
            self._learn(stages.layers[0], call, outcome.inputs)
        return outcome

    @staticmethod
    def _learn(first: VectorQuantize, call: StagesCall, inputs: list[Tensor]) -> None:
        every = torch.stack(inputs, dim=2)
        counted = None
        if call.mask is not None:
            counted = call.mask[..., None].expand(every.shape[:-1])
        if isinstance(call.last, Tensor):
            numbers = torch.arange(len(inputs), device=call.last.device)
            ran = (numbers <= call.last).expand(every.shape[:-1])
            counted = ran if counted is None else counted & ran
        first.finish_shared_step(
            every.flatten(1, 2), None if counted is None else counted.flatten(1)
        )


class Directional:
    """Another route whose sum learns by directional reparametrisation.

    In eval the noise of that would only be an error.
    """

    def __init__(self, route: StagesRoute):
        self.route = route

    def run(self, stages: Stages, call: StagesCall) -> StagesOutcome | None:
        """As :meth:`StagesRoute.run`."""
        outcome = self.route.run(stages, call)
        if outcome is None or not call.training:
            return outcome
        return outcome._replace(total=directional_reparam(call.start, outcome.total))
