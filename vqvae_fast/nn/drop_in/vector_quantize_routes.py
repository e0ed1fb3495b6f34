"""The ways from vectors to codes, one of which serves a call of VectorQuantize.

A quantizer makes its routes when it is made, and anew if one of its attributes changes that says
which search, gradient or loss it has. Each ``run`` says from top to bottom what a call does.
"""

import torch
from torch import Tensor

from vqvae_fast.autograd.nearest_with_loss import nearest_with_loss
from vqvae_fast.nn.drop_in.vector_quantize_call import Call, Outcome, Route
from vqvae_fast.nn.drop_in.vector_quantize_parts import Kinds
from vqvae_fast.nn.steps.choosing import Best, Chosen
from vqvae_fast.nn.steps.losses import (
    Commitment,
    LossBreakdown,
    commitment_of_each,
    no_commitment,
)
from vqvae_fast.nn.steps.regularisers import masked_mean


class Evaluation:
    """Search only: nothing is learned, and the loss is 0 unless each of k codes has one."""

    def __init__(self, search: Best, commitment: Commitment):
        self.search, self.commitment = search, commitment

    def run(self, call: Call) -> Outcome:
        """As :meth:`Route.run`."""
        packed = call.book.packed(self.search.compared) if call.wanted.one_stored_code() else None
        if packed is not None and packed.dtype == call.rows.dtype:
            chosen = self.search.choose_packed(call.rows, call.codes, packed)
        else:
            chosen = self.search.choose(call.rows, call.codes(), call.wanted)
        commitment = self.commitment(call.rows, chosen, call.counted)
        return Outcome(chosen, commitment * call.commitment_weight(), _parts(call, commitment))


class Training:
    """What the routes of training share."""

    def __init__(self, kinds: Kinds):
        self.search, self.regularisers = kinds.search, kinds.regularisers
        self.codes_learn = kinds.learnable_codebook

    def with_regularisers(self, call: Call, chosen: Chosen, parts: LossBreakdown) -> Outcome:
        """The outcome with all losses of the step."""
        loss = parts.commitment * call.commitment_weight()
        for regulariser in self.regularisers:
            value = regulariser.value(call, chosen)
            loss = loss + value * regulariser.weight(call)
            parts = parts._replace(**{regulariser.part: value})
        if not loss.requires_grad and not torch.compiler.is_compiling():
            loss.requires_grad_()  # a loss without parts may be sent backward, too
        return Outcome(chosen, loss, parts)


class StepByStep(Training):
    """Training: search, learn, then loss and gradient, each by itself."""

    def __init__(self, kinds: Kinds, commitment: Commitment):
        super().__init__(kinds)
        self.commitment, self.estimator = commitment, kinds.estimator
        self.needs_all_codes = kinds.needs_all_codes

    def run(self, call: Call) -> Outcome:
        """As :meth:`Route.run`."""
        call.prepare()
        chosen = self.choose(call)
        call.learn(chosen)
        chosen, in_place = self.move_codes(call, chosen)
        learned = chosen if self.codes_learn and not call.frozen else chosen.detached()
        commitment = self.commitment(call.rows, learned, call.counted)
        quantized = self.estimator(call, chosen.beside(call.rows), chosen.quantized)
        chosen = chosen._replace(quantized=quantized)
        parts = _parts(call, commitment)._replace(inplace_optimize=in_place)
        return self.with_regularisers(call, chosen, parts)

    def choose(self, call: Call) -> Chosen:
        """Search among the codes as they are now."""
        return self.search.choose(call.rows, call.codes(self.needs_all_codes), call.wanted)

    def move_codes(self, call: Call, chosen: Chosen) -> tuple[Chosen, Tensor]:
        """The codes that count from here on, and the loss that has moved them: none, 0."""
        return chosen, call.rows.new_zeros(())


class StepByStepInPlace(StepByStep):
    """Training with an optimizer that moves the codes before they are used."""

    def move_codes(self, call: Call, chosen: Chosen) -> tuple[Chosen, Tensor]:
        """Take a step of the optimizer, and search again."""
        if call.frozen:
            return super().move_codes(call, chosen)
        loss = masked_mean((chosen.quantized - call.rows.detach()).square(), call.counted)
        loss.backward()
        if not call.settings.manual_in_place_optimizer_update:
            call.settings.update_in_place_optimizer()
        return self.choose(call), loss


class OnePiece(Training):
    """Training by default: search, loss and gradient in one pass over the vectors, then learn."""

    def __init__(self, kinds: Kinds):
        super().__init__(kinds)
        self.rotates = kinds.rotation_trick

    @staticmethod
    def fits(kinds: Kinds) -> bool:
        """Whether a quantizer of these kinds has calls that ask for nothing more."""
        return (
            kinds.has_commitment_loss
            and kinds.route_gradients_to_input
            and not kinds.needs_all_codes
            and not kinds.sync_update_v
            and not kinds.in_place_codebook_optimizer
        )

    def serves(self, call: Call) -> bool:
        """Whether this call is one of them."""
        # Without a gradient to the vectors the codes get that of the result.
        passes = call.rows.requires_grad or not call.book.learnable_codebook
        all_count = call.counted is None and not call.keeps_codes
        return passes and all_count and self.search.finds_nearest(call.wanted)

    def run(self, call: Call) -> Outcome:
        """As :meth:`Route.run`."""
        call.prepare()
        codes = call.codes()
        quantized, indices, commitment = nearest_with_loss(
            call.rows, codes, rotates=self.rotates, codes_learn=self.codes_learn
        )
        chosen = Chosen(codes, indices, quantized)
        call.learn(chosen)
        return self.with_regularisers(call, chosen, _parts(call, commitment))


def _parts(call: Call, commitment: Tensor) -> LossBreakdown:
    """The commitment loss, and 0 for all others."""
    zero = call.rows.new_zeros
    return LossBreakdown(commitment, zero(()), zero(()), zero(()))


class Routes:
    """All routes of a quantizer.

    Attributes:
        best: the search in eval.
    """

    def __init__(self, kinds: Kinds):
        by_steps = StepByStepInPlace if kinds.in_place_codebook_optimizer else StepByStep
        each = commitment_of_each if kinds.has_commitment_loss else no_commitment
        self.best = kinds.best
        self._one_piece = OnePiece(kinds) if OnePiece.fits(kinds) else None
        # By (training, several codes for each vector).
        self._others: dict[tuple[bool, bool], Route] = {
            (True, False): by_steps(kinds, kinds.commitment),
            (True, True): by_steps(kinds, each),
            (False, False): Evaluation(kinds.best, no_commitment),
            (False, True): Evaluation(kinds.best, commitment_of_each),
        }

    def of(self, call: Call, training: bool) -> Route:
        """The route of a call."""
        one_piece = self.in_one_piece(call) if training else None
        return one_piece or self._others[training, call.wanted.topk is not None]

    def in_one_piece(self, call: Call) -> OnePiece | None:
        """The default of training, if it serves the call."""
        one_piece = self._one_piece
        return one_piece if one_piece is not None and one_piece.serves(call) else None
