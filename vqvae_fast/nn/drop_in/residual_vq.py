"""vector-quantize-pytorch's ResidualVQ on the exact fused search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.agreement import require_same
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.distributed import is_distributed
from vqvae_fast.nn.codebook.kept_pack import KeepsPack, KeptForm
from vqvae_fast.nn.drop_in.composed_stages import ComposedStages
from vqvae_fast.nn.drop_in.implicit_codebook import ImplicitCodebook
from vqvae_fast.nn.drop_in.plain_stage import finds_nearest_in_eval
from vqvae_fast.nn.drop_in.residual_vq_options import check, sizes_of_stages
from vqvae_fast.nn.drop_in.residual_vq_routes import (
    AtOnce,
    ByBeams,
    Directional,
    PlainStages,
    Projected,
    StageByStage,
    Stages,
    StagesCall,
    StagesOutcome,
    StagesRoute,
    WithSharedBook,
    WithTargets,
)
from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.checks import refuse
from vqvae_fast.nn.steps.fixed_attributes import FixedAttributes
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.steps.layout import Layout, to_places, vectors_to_places
from vqvae_fast.nn.steps.quantize_dropout import DropsStages
from vqvae_fast.nn.steps.stages import padded_indices, sum_of_stages
from vqvae_fast.tracing import called_while_tracing

# Attributes that must be the same in all processes: they decide which collectives a step calls.
_SAME_EVERYWHERE = (
    *("dim", "codebook_dim", "num_quantizers", "codebook_sizes", "shared_codebook", "diveq"),
    *("quantize_dropout", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of"),
    *("implicit_neural_codebook", "beam_size", "beam_score_weights"),
)


class ResidualVQ(Freezable, KeepsPack, DropsStages, FixedAttributes):
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
        implicit_neural_codebook: a network transforms the codes of all stages but the first;
            mlp_kwargs are its arguments.
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

    _composition: KeptForm[ComposedStages] | None = None

    FIXED = frozenset(
        (
            *("dim", "codebook_dim", "num_quantizers", "codebook_sizes", "uniform_codebook_size"),
            *("channel_last", "accept_image_fmap", "shared_codebook", "diveq"),
            *("implicit_neural_codebook", "vq_is_ema_updating"),
        )
    )

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
        sizes = sizes_of_stages(codebook_size, num_quantizers)
        stages = len(sizes)
        codebook_dim = dim if codebook_dim is None else codebook_dim
        check(given | arguments, sizes)
        super().__init__(
            stages, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
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
        self.codebook_sizes = sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.shared_codebook, self.diveq = shared_codebook, diveq
        self.accept_image_fmap = accept_image_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook = implicit_neural_codebook
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
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
            for stage in self._stages()[1:]:
                stage.share_codebook(self._stage(0))
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
        self._routes = self._make_routes()

    def pack_keepers(self) -> list[KeepsPack]:
        """As :meth:`Freezable.pack_keepers`: this module for all stages at once, or each stage."""
        refuse(
            (
                self.implicit_neural_codebook,
                "freeze needs a ResidualVQ without implicit_neural_codebook, which gives every "
                "vector codes of its own",
            ),
            (
                (self.eval_beam_size or 1) > 1,
                "freeze needs a ResidualVQ without beams in eval: set its eval_beam_size to 1, "
                f"got {self.eval_beam_size}",
            ),
        )
        books = [stage._codebook for stage in self._stages()]
        if self.uniform_codebook_size and all(map(finds_nearest_in_eval, self._stages(), books)):
            return [self]
        return list(dict.fromkeys(books))

    def keep_composed(self, verify: bool) -> None:
        """As :meth:`KeepsPack.keep_composed`, for stages with projections of their own."""
        if self._stage(0).has_projections:
            self._composition = KeptForm(verify)

    def keep_no_pack(self) -> None:
        """As :meth:`KeepsPack.keep_no_pack`."""
        super().keep_no_pack()
        self._composition = None

    def kept_forms(self) -> list[KeptForm[Any]]:
        """As :meth:`KeepsPack.kept_forms`."""
        kept = super().kept_forms()
        return kept if self._composition is None else [*kept, self._composition]

    def _make_routes(self) -> list[StagesRoute]:
        """The routes that a quantizer of this kind has, in the order in which they are tried."""
        routes: list[StagesRoute] = [WithTargets(), ByBeams()]
        if self.uniform_codebook_size and not self.implicit_neural_codebook:
            routes.append(AtOnce())
        if not self.has_projections and not self.implicit_neural_codebook:
            routes.append(Projected())
        if not self.shared_codebook and not self.implicit_neural_codebook:
            routes.append(PlainStages())
        routes.append(StageByStage())
        if self.shared_codebook:
            routes = [WithSharedBook(route) for route in routes]
        return [Directional(route) for route in routes] if self.diveq else routes

    @property
    def codebook_size(self) -> int:
        """K, of the first stage."""
        return self._stage(0).codebook_size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The codes of all stages, [Q, K, d] as they are stored, a tuple if sizes differ."""
        books = tuple(stage.codebook.flatten(0, -2) for stage in self._stages())
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
        beam_size = self._beam_size(beam_size)
        last = self._last(x.device, rand_quantize_dropout_fixed_seed, freeze_codebook, right)
        call = StagesCall(
            start=self.project_in(tokens),
            mask=mask,
            training=self.training,
            frozen=self._frozen(freeze_codebook),
            temperature=sample_codebook_temp,
            beam_size=beam_size,
            last=last,
            right=right,
        )
        total, found, losses, _ = self._through_stages(call)
        out = self.project_out(total.to(call.start.dtype)).to(x.dtype)
        if mask is not None:
            padding = torch.zeros_like(tokens) if self.return_zeros_for_masked_padding else tokens
            out = torch.where(mask[..., None], out, padding)
        out = vectors_to_places(out, places)
        if right is not None:
            return out, losses
        found = to_places(found, places)
        result = (out, found, losses)
        return (*result, self.get_codes_from_indices(found)) if return_all_codes else result

    def communicates(self, freeze_codebook: bool | None = None) -> bool:
        """Whether such a call of :meth:`forward` calls the other processes, k-means aside."""
        if not (self.training and is_distributed()):  # first, because the stages are many
            return False
        frozen = self._frozen(freeze_codebook)
        learns = not frozen and any(stage.communicates for stage in self._stages())
        return learns or self._dropout is not None

    @called_while_tracing
    def _compare_processes(self) -> None:
        """Make sure, once, that all processes have as many stages, and alike."""
        require_same(
            self,
            "ResidualVQ",
            lambda: {name: getattr(self, name) for name in _SAME_EVERYWHERE},
            self._stage(0).codebook.device,
        )

    # The stages of tokens [B, N, d].

    def _stage(self, number: int) -> VectorQuantize:
        stage: VectorQuantize = self.layers[number]  # type: ignore[assignment]
        return stage

    def _stages(self) -> list[VectorQuantize]:
        return list(self.layers)  # type: ignore[arg-type]

    def _through_stages(self, call: StagesCall) -> StagesOutcome:
        """By the first of the routes that serves the call."""
        stages = Stages(
            self._stages(),
            tuple(self.mlps),
            self._dropout,
            self.quant_grad_frac,
            self.beam_score_weights,
            self._kept_pack,
            self._composition,
        )
        for route in self._routes:
            outcome = route.run(stages, call)
            if outcome is not None:
                return outcome
        raise AssertionError("StageByStage serves every call")

    def _frozen(self, freeze_codebook: bool | None) -> bool:
        return self._stage(0).freeze_codebook if freeze_codebook is None else freeze_codebook

    def _beam_size(self, asked: int | None) -> int:
        """How many ways to quantize a vector a call follows."""
        if asked is None:
            asked = self.beam_size if self.training else self.eval_beam_size
        if asked is not None and asked < 1:
            raise ValueError(f"beam_size must be at least 1, got {asked}")
        return asked or 1

    def _last(
        self,
        device: torch.device,
        seed: int | None,
        freeze_codebook: bool | None,
        right: Tensor | None,
    ) -> int | Tensor:
        """The last stage that runs: drawn in training, by all processes alike."""
        if right is None and self.communicates(freeze_codebook):
            self._compare_processes()
        if self._dropout is not None and self.training and right is None:
            return self._dropout.last(device, seed)
        return self.num_quantizers - 1

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
            codes = take_codes(stage.codes_in_use()[0], chosen.clamp(min=0))
            mlp = self.mlps[number - 1] if number > 0 else None
            if mlp is not None:
                assert isinstance(mlp, ImplicitCodebook)
                assert total is not None
                codes = mlp.of_chosen(codes, total)
            codes = codes.to(stage.codebook.dtype)
            codes = stage.vectors_of(codes) if stage.has_projections else codes
            codes = torch.where(chosen[..., None] < 0, 0, codes)
            total = codes if total is None else total + codes
            taken.append(codes)
        return taken
