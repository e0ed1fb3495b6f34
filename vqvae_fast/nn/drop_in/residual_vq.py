"""vector-quantize-pytorch's ResidualVQ on the exact fused search."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.agreement import require_same
from vqvae_fast.autograd.estimators import directional_reparam
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.autograd.residual_nearest_with_loss import Stage, residual_nearest_with_loss
from vqvae_fast.distributed import is_distributed
from vqvae_fast.nn.codebook.codebook import Codebook
from vqvae_fast.nn.drop_in.implicit_codebook import ImplicitCodebook
from vqvae_fast.nn.drop_in.residual_vq_options import check, sizes_of_stages
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.autocast import without_autocast
from vqvae_fast.nn.steps.beams import Beams
from vqvae_fast.nn.steps.layout import Layout, to_places, vectors_to_places
from vqvae_fast.nn.steps.quantize_dropout import (
    Runs,
    dropout_of_stages,
    left_out_unless,
    undone_unless,
)
from vqvae_fast.nn.steps.regularisers import masked_mean
from vqvae_fast.nn.steps.stages import padded_indices, sum_of_stages

# What sends the processes different ways, where they differ in it.
_SAME_EVERYWHERE = (
    *("dim", "codebook_dim", "num_quantizers", "codebook_sizes", "shared_codebook", "diveq"),
    *("quantize_dropout", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of"),
    *("implicit_neural_codebook", "beam_size", "beam_score_weights"),
)


class ResidualVQ(nn.Module):
    """Quantizes in stages, each of which takes what the last has left.

    Zeghidour et al., SoundStream, arXiv 2107.03312, algorithm 1. Arguments, defaults, results and
    state_dict keys are those of vector-quantize-pytorch 1.32; docs/drop-in.md lists where it is
    wrong and this class is not.

    Args:
        dim: D, of the vectors.
        num_quantizers: Q; may be left out where ``codebook_size`` is a sequence.
        codebook_size: K, or a sequence of Q sizes.
        codebook_dim: d; linear layers lead there and back if it is not D.
        shared_codebook: one book for all stages.
        diveq: codes learn by directional reparametrisation of the sum (KRVnpTbx7R at OpenReview).
        heads: 1.
        quantize_dropout: in training stop after a random stage, not before
            quantize_dropout_cutoff_index, the number of stages a multiple of
            quantize_dropout_multiple_of.
        accept_image_fmap: x is [B, D, height, width].
        implicit_neural_codebook: :class:`ImplicitCodebook` transforms the codes of all stages but
            the first; mlp_kwargs are its arguments.
        beam_size: in training, follow this many ways to quantize a vector; eval_beam_size in eval,
            beam_size unless given.
        beam_score_quantizer_weights: Q weights of the stages' errors in a way's score; 1.
        quant_grad_frac: share of a stage's gradient that reaches the stages before it.
        return_zeros_for_masked_padding: masked vectors become zeros; else they pass as they are.
        project_per_stage: each stage has linear layers of its own, as in DAC; not in the peer.
        arguments: those of :class:`VectorQuantize`; ``channel_last`` and ``accept_3d_fmap`` say how
            x lies here, too.

    Raises:
        ValueError: a number is out of range, or arguments contradict each other.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | Sequence[int],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: Sequence[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        project_per_stage: bool = False,
        **arguments: Any,
    ):
        given = dict(locals())
        super().__init__()
        sizes = sizes_of_stages(codebook_size, num_quantizers)
        stages = len(sizes)
        codebook_dim = dim if codebook_dim is None else codebook_dim
        check(given | arguments, sizes)
        if implicit_neural_codebook:
            arguments |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            arguments |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            arguments |= {
                "learnable_codebook": True,
                "ema_update": False,
                "route_gradients_to_input": False,
                "commitment_weight": 0.0,
            }
        self.channel_last = arguments.pop("channel_last", True)
        fmap = 3 if arguments.pop("accept_3d_fmap", False) else 2 if accept_image_fmap else None
        self._layout = Layout(dim, fmap is not None or not self.channel_last, fmap, True)
        self.dim, self.codebook_dim = dim, codebook_dim
        self.num_quantizers, self.codebook_sizes = stages, sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.shared_codebook, self.diveq = shared_codebook, diveq
        self.accept_image_fmap = accept_image_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook = implicit_neural_codebook
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self._dropout = dropout_of_stages(
            quantize_dropout, stages, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        self.quantize_dropout = self._dropout is not None
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size

        self.has_projections = codebook_dim != dim and not project_per_stage
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in, self.project_out = (
                nn.Linear(dim, codebook_dim),
                nn.Linear(codebook_dim, dim),
            )
        self.layers = nn.ModuleList(
            VectorQuantize(
                dim=dim if project_per_stage else codebook_dim,
                codebook_size=size,
                codebook_dim=codebook_dim,
                return_zeros_for_masked_padding=return_zeros_for_masked_padding,
                **arguments,
            )
            for size in sizes
        )
        if shared_codebook:
            for stage in self.layers:
                stage._codebook = self.layers[0]._codebook
        self.vq_is_ema_updating = self._stage(0).ema_update
        self.mlps: nn.ModuleList | tuple[None, ...] = (None,) * (stages - 1)
        if implicit_neural_codebook:
            self.mlps = nn.ModuleList(
                ImplicitCodebook(
                    codebook_dim,
                    l2norm_output=self._stage(0).use_cosine_sim,
                    **(mlp_kwargs or {}),
                )
                for _ in range(stages - 1)
            )
        weights = beam_score_quantizer_weights or [1.0] * stages
        self.beam_score_weights = tuple(float(weight) for weight in weights)

    @property
    def codebook_size(self) -> int:
        """K, of the first stage."""
        return self._stage(0).codebook_size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The codes of all stages as they are stored: [Q, K, d], a tuple if sizes differ."""
        books = tuple(
            self._stage(number)._codebook.embed[0] for number in range(self.num_quantizers)
        )
        return torch.stack(books) if self.uniform_codebook_size else books

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """What the stages have taken: indices [B, ..., Q or fewer] -> [Q, B, ..., d].

        Zeros for an index of -1 and for stages that are left out.
        """
        tokens, places = self._layout.index_tokens(indices)
        codes = torch.stack(self._codes_of(tokens))
        return torch.stack([to_places(stage, places) for stage in codes])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What :meth:`forward` returns for vectors with these indices."""
        tokens, places = self._layout.index_tokens(indices)
        total = sum_of_stages(torch.stack(self._codes_of(tokens)))
        total = total.to(self._stage(0).zero.dtype)  # codes stay in float32 in narrower models
        return vectors_to_places(self.project_out(total), places)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Any, ...]:
        """Quantize in stages.

        Args:
            x: [B, ..., D], [B, D], or [B, D, height, width] with ``accept_image_fmap``.
            mask: bool, x's shape without D; False: padding.
            indices: codes that are right, [B, ..., Q] or a list of Q; the result is then the sum
                of the stages' cross-entropies.
            return_all_codes: return the codes of all stages, too.
            sample_codebook_temp: instead of the constructor's.
            freeze_codebook: nothing is learned; instead of the constructor's.
            beam_size: instead of the constructor's.
            rand_quantize_dropout_fixed_seed: draws the last stage; the same for the same number.

        Returns:
            ``(quantized, indices, losses)``: like x; int64, x's shape without D, with Q at the
            end, -1 for stages that were left out and padding; [Q]. Then the codes,
            [Q, B, ..., d], if asked for. With ``indices``: ``(quantized, cross-entropy)``.
        """
        tokens, places = self._layout.tokens(x)
        mask = self._layout.mask(tokens, places, mask, None)
        right = None if indices is None else self._right(indices, tokens)
        if beam_size is None:
            beam_size = self.beam_size if self.training else self.eval_beam_size
        if beam_size is not None and beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, got {beam_size}")
        if right is None and self.communicates(freeze_codebook):
            self._compare_processes()
        last: int | Tensor = self.num_quantizers - 1
        if self._dropout is not None and self.training and right is None:
            last = self._dropout.last(x.device, rand_quantize_dropout_fixed_seed)
        start = self.project_in(tokens)
        frozen = self._stage(0).freeze_codebook if freeze_codebook is None else freeze_codebook
        how = {"sample_codebook_temp": sample_codebook_temp, "freeze_codebook": frozen}

        inputs: list[Tensor] = []
        cross_entropy = None
        if right is not None:
            total, cross_entropy = self._with_targets(start, mask, right, how)
            found, losses = tokens.new_zeros(0), tokens.new_zeros(0)
        elif beam_size is not None and beam_size > 1:
            total, found, losses, inputs = self._by_beams(start, mask, last, beam_size, how)
        elif self._serves_all_stages_at_once(start, mask):
            books = torch.stack([stage._codebook.codes()[0] for stage in self._stages()])
            found, total = functional.residual_nearest_code(start.to(books.dtype), books)
            losses = books.new_zeros(self.num_quantizers)
        elif stages := self._plain_stages(start, mask, how):
            total, found, losses = self._by_plain_stages(start, stages)
        else:
            total, found, losses, inputs = self._by_stages(start, mask, last, how)

        if self.shared_codebook and self.training and not frozen and right is None:
            self._learn_shared(inputs, mask, last)
        if self.diveq and self.training:  # in eval noise would only be an error
            total = directional_reparam(start, total)
        out = self.project_out(total.to(start.dtype)).to(x.dtype)
        if mask is not None:
            padding = torch.zeros_like(tokens) if self.return_zeros_for_masked_padding else tokens
            out = torch.where(mask[..., None], out, padding)
        out = vectors_to_places(out, places)
        if cross_entropy is not None:
            return out, cross_entropy
        found = to_places(found, places)
        result = (out, found, losses)
        return (*result, self.get_codes_from_indices(found)) if return_all_codes else result

    def communicates(self, freeze_codebook: bool | None = None) -> bool:
        """Whether such a call of :meth:`forward` calls the other processes, k-means aside."""
        frozen = self._stage(0).freeze_codebook if freeze_codebook is None else freeze_codebook
        learns = not frozen and any(stage._codebook.communicates for stage in self._stages())
        return self.training and is_distributed() and (learns or self._dropout is not None)

    @torch.compiler.assume_constant_result  # the compiler calls it, and leaves it out of the graph
    def _compare_processes(self) -> None:
        """Make sure, once, that all processes have as many stages, and alike."""
        require_same(
            self,
            "ResidualVQ",
            lambda: {name: getattr(self, name) for name in _SAME_EVERYWHERE},
            self._stage(0)._codebook.embed.device,
        )

    # The stages of tokens [B, N, d].

    def _stage(self, number: int) -> VectorQuantize:
        stage: VectorQuantize = self.layers[number]  # type: ignore[assignment]
        return stage

    def _stages(self) -> list[VectorQuantize]:
        return [self._stage(number) for number in range(self.num_quantizers)]

    def _transform(self, number: int, quantized: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What makes the codes of a stage, given what those before it have quantized."""
        mlp = self.mlps[number - 1] if number > 0 else None
        return None if mlp is None else functools.partial(mlp, condition=quantized)

    def _runs(self, number: int, last: int | Tensor) -> Runs:
        return True if self._dropout is None else self._dropout.runs(number, last)

    def _by_stages(
        self, start: Tensor, mask: Tensor | None, last: int | Tensor, how: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The sum of the codes, indices [B, N, Q], losses [Q], and what each stage was given."""
        residual, total = start, torch.zeros_like(start)
        inputs: list[Tensor] = []
        indices: list[Tensor] = []
        losses: list[Tensor] = []
        for number, stage in enumerate(self._stages()):
            runs = self._runs(number, last)
            if runs is False:
                indices.append(torch.full_like(indices[0], -1))
                losses.append(torch.zeros_like(losses[0]))
                continue
            inputs.append(residual)
            transform = self._transform(number, total)
            step = functools.partial(
                stage, residual, mask=mask, codebook_transform_fn=transform, **how
            )
            quantized, chosen, loss = left_out_unless(
                runs, *undone_unless(runs, stage._codebook.written, step)
            )
            residual = residual - self._passed(quantized)
            total = total + quantized
            indices.append(chosen)
            losses.append(loss)
        return total, torch.stack(indices, dim=-1), torch.stack(losses), inputs

    def _plain_stages(
        self, start: Tensor, mask: Tensor | None, how: dict[str, Any]
    ) -> Sequence[Stage]:
        """The stages, if none does more than the default: less memory serves them all."""
        more = (
            not self.training
            or mask is not None
            or how["sample_codebook_temp"] is not None
            or self._dropout is not None
            or self.shared_codebook
            or self.implicit_neural_codebook
            or self.quant_grad_frac > 0
        )
        if more:
            return []
        stages = [stage.as_plain_stage(start, how["freeze_codebook"]) for stage in self._stages()]
        plain = [stage for stage in stages if stage is not None]
        alike = {(stage.commitment_weight, stage.rotation_trick) for stage in self._stages()}
        return plain if len(plain) == len(stages) and len(alike) == 1 else []

    def _by_plain_stages(
        self, start: Tensor, stages: Sequence[Stage]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_by_stages`."""
        first = self._stage(0)
        with without_autocast(start.device.type):
            total, indices, commitments = residual_nearest_with_loss(
                start, stages, rotates=first.rotation_trick
            )
        return total, indices, commitments * first.commitment_weight

    def _with_targets(
        self, start: Tensor, mask: Tensor | None, right: Tensor, how: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The sum of the codes, and of the cross-entropies with the right ones [B, N, Q]."""
        residual, total = start, torch.zeros_like(start)
        losses = []
        for number, stage in enumerate(self._stages()):
            transform = self._transform(number, total)
            quantized, loss = stage(
                residual,
                mask=mask,
                indices=right[..., number],
                codebook_transform_fn=transform,
                **how,
            )
            residual = residual - self._passed(quantized)
            total = total + quantized
            losses.append(loss)
        return total, torch.stack(losses).sum()

    def _by_beams(
        self,
        start: Tensor,
        mask: Tensor | None,
        last: int | Tensor,
        size: int,
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """As :meth:`_by_stages`, of the best way."""
        beams = ended = Beams.start(start)
        scored = True
        for number, stage in enumerate(self._stages()):
            runs = self._runs(number, last)
            if runs is False:
                break
            ways = beams.residual.shape[2]
            padding = None if mask is None else mask[..., None].expand(*mask.shape, ways)
            transform = self._transform(number, beams.quantized.flatten(1, 2))
            step = functools.partial(
                stage,
                beams.residual,
                mask=padding,
                codebook_transform_fn=transform,
                topk=size,
                **how,
            )
            quantized, chosen, loss = undone_unless(runs, stage._codebook.written, step)
            scored = loss.dim() > 0
            if not scored:  # without a commitment loss there is still a distance
                loss = (quantized - beams.residual.unsqueeze(3)).square().mean(dim=-1).detach()
            weight = self.beam_score_weights[number]
            beams = beams.extended(quantized, self._passed(quantized), chosen, loss, weight)
            if isinstance(runs, Tensor):
                ended = beams.best(1).ended_before(runs, ended)
            elif isinstance(last, Tensor) or number == last:
                ended = beams.best(1)
            beams = beams.best(size)
        best = Beams(*(part[:, :, 0] for part in ended))
        losses = torch.stack(
            [masked_mean(part[..., None], mask) for part in best.losses.unbind(-1)]
        )
        losses = losses if scored else torch.zeros_like(losses)
        inputs = list(best.inputs.unbind(dim=-2))
        if self.training and not how["freeze_codebook"]:
            for number, (given, chosen) in enumerate(
                zip(inputs, best.indices.unbind(-1), strict=True)
            ):
                stage = self._stage(number)
                step = functools.partial(
                    stage.update_indices, given, chosen.clamp(min=0), mask=mask
                )
                undone_unless(self._runs(number, last), stage._codebook.written, step)
        missing = (0, self.num_quantizers - len(inputs))
        found = torch.nn.functional.pad(best.indices, missing, value=-1)
        return best.quantized, found, torch.nn.functional.pad(losses, missing), inputs

    def _passed(self, quantized: Tensor) -> Tensor:
        """What is subtracted, with the share of the gradient that may pass."""
        fraction = self.quant_grad_frac
        if fraction <= 0:
            return quantized.detach()
        return fraction * quantized + (1 - fraction) * quantized.detach()

    def _serves_all_stages_at_once(self, start: Tensor, mask: Tensor | None) -> bool:
        """Whether there is nothing but nearest codes to find: one call does all stages.

        It keeps what is left in float32, and so gives what the stages give to float32 vectors.
        """
        codes = self._stage(0)._codebook
        learns = torch.is_grad_enabled() and codes.learnable_codebook
        return (
            not self.training
            and mask is None
            and not learns
            and not self.implicit_neural_codebook
            and self.uniform_codebook_size
            and not self._stage(0).has_projections
            and not codes.use_cosine_sim
            and not self._stage(0).cosine_search
            and type(codes) is Codebook
            and codes.vq_bridge is None
            and start.dtype == codes.embed.dtype == torch.float32
            and not (torch.is_grad_enabled() and start.requires_grad)
            and not any(stage.is_watched for stage in self._stages())
        )

    def _learn_shared(self, inputs: list[Tensor], mask: Tensor | None, last: int | Tensor) -> None:
        """The averages of all stages' vectors go into the book once."""
        first = self._stage(0)
        if self.vq_is_ema_updating:
            first._codebook.update_ema()
        first.update_in_place_optimizer()
        every = torch.stack(inputs, dim=2)
        padding = None if mask is None else mask[..., None].expand(every.shape[:-1])
        if isinstance(last, Tensor):
            ran = (torch.arange(len(inputs), device=last.device) <= last).expand(every.shape[:-1])
            padding = ran if padding is None else padding & ran
        first._codebook.expire_codes_(
            first._rows(every.flatten(1, 2)),
            None if padding is None else padding.flatten(1)[None],
        )

    def _right(self, indices: Tensor | list[Tensor], tokens: Tensor) -> Tensor:
        """[B, N, Q]."""
        right = torch.stack(indices, dim=-1) if isinstance(indices, list) else indices
        right, _ = self._layout.index_tokens(right)
        wanted = (*tokens.shape[:2], self.num_quantizers)
        if right.shape != wanted:
            raise ValueError(f"indices must be {list(wanted)}, got {list(right.shape)}")
        return right

    def _codes_of(self, tokens: Tensor) -> list[Tensor]:
        """Indices [B, N, q] -> the codes of Q stages, [B, N, d] each."""
        total: Tensor | None = None
        taken = []
        for number, chosen in enumerate(padded_indices(tokens, self.num_quantizers)):
            stage = self._stage(number)
            codes = take_codes(stage._codebook.codes()[0], chosen.clamp(min=0))
            mlp = self.mlps[number - 1] if number > 0 else None
            if mlp is not None:
                assert isinstance(mlp, ImplicitCodebook)
                assert total is not None
                codes = mlp.of_chosen(codes, total)
            codes = codes.to(stage._codebook.embed.dtype)
            codes = stage.vectors_of(codes) if stage.has_projections else codes
            codes = torch.where(chosen[..., None] < 0, 0, codes)
            total = codes if total is None else total + codes
            taken.append(codes)
        return taken
