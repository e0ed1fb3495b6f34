"""vector-quantize-pytorch's VectorQuantize on the exact fused search."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional
from torch.optim import Optimizer

from vqvae_fast.autocast import without_autocast
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.averages import EmaWeight
from vqvae_fast.nn.codebook.kept_pack import KeepsPack
from vqvae_fast.nn.drop_in.vector_quantize_call import Averaging, Call
from vqvae_fast.nn.drop_in.vector_quantize_options import (
    WEIGHTS,
    KeptArguments,
    OfCodebook,
    check,
    check_topk,
    learning,
)
from vqvae_fast.nn.drop_in.vector_quantize_parts import Kinds, make_codebook
from vqvae_fast.nn.drop_in.vector_quantize_routes import Routes
from vqvae_fast.nn.steps import logits
from vqvae_fast.nn.steps.choosing import CodebookTransform, Wanted
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.steps.layout import (
    Heads,
    Layout,
    Places,
    losses_to_places,
    to_places,
    to_tokens,
    vectors_to_places,
    with_padding,
)


class VectorQuantize(Freezable, KeptArguments):
    """Replaces every vector by its nearest code: vector-quantize-pytorch 1.32's class.

    Arguments, defaults, results and state_dict keys are that library's; docs/drop-in.md lists where
    it is wrong and this class is not. The search is exact, in float32 also in a model of half
    precision, and N x K numbers are never in memory.

    Args:
        dim: D, of the vectors.
        codebook_size: K, the number of codes.
        codebook_dim: d, of a code (of each head); linear layers lead there and back if d * heads
            is not D.
        heads: parts of a vector that are quantized by themselves.
        separate_codebook_per_head: with a book for each.
        decay: of the moving averages.
        eps: of their Laplace smoothing.
        freeze_codebook: nothing is learned, unless a call says otherwise.
        kmeans_init: start from k-means over the first training batch.
        kmeans_iters: its rounds.
        sync_kmeans: over the batches of all processes.
        use_cosine_sim: vectors and codes have unit length. Also with ``learnable_codebook``.
        layernorm_after_project_in: after the linear layer that leads to the codes.
        threshold_ema_dead_code: a code that is chosen by fewer vectors per batch than this, in the
            moving average, moves to a random vector of the batch. 0: never.
        channel_last: vectors lie along the last dimension, [B, ..., D]; else [B, D, N].
        accept_image_fmap: x is [B, D, height, width].
        accept_3d_fmap: x is [B, D, depth, height, width].
        commitment_weight: of mean((z - sg[q])^2); with ``learnable_codebook`` of mean((z - q)^2).
        commitment_use_cross_entropy_loss: -log softmax(-distances)[code] in its place.
        orthogonal_reg_weight: of the codes' orthogonality loss; over
            orthogonal_reg_active_codes_only, those that the batch has chosen, and over
            orthogonal_reg_max_codes at random.
        codebook_diversity_loss_weight: of the negative entropy of
            softmax(-distances * codebook_diversity_temperature), averaged over the batch.
        stochastic_sample_codes: in training, draw codes by
            softmax(-distances / sample_codebook_temp).
        sample_codebook_temp: 0: the nearest.
        straight_through: the gradient of the Gumbel softmax.
        rotation_trick: the gradient of arXiv 2410.06424; on unless another estimator is asked for,
            or D is 1. False: straight-through.
        directional_reparam: DiVeQ, with noise of directional_reparam_variance.
        sync_codebook: all processes learn the same codes; on where there are several.
        affine_param: codes follow the batch's mean and variance (arXiv 2305.08842, section 4.1),
            with affine_param_batch_decay and affine_param_codebook_decay, over all processes with
            sync_affine_param.
        ema_update: codes are moving averages; unless ``learnable_codebook``.
        vq_bridge: a module that transforms the codes before each use.
        manual_ema_update: the averages are written when ``_codebook.update_ema()`` is called.
        learnable_codebook: codes are a parameter.
        in_place_codebook_optimizer: makes an optimizer that takes a step on the codes in each
            forward pass, before they are used; with manual_in_place_optimizer_update when
            :meth:`update_in_place_optimizer` is called.
        sync_update_v: v of arXiv 2305.08842, eq. 21.
        return_zeros_for_masked_padding: masked vectors become zeros; else they pass as they are.
        route_gradients_to_input: whether the gradient passes at all.
        cosine_search: choose the code by cosine similarity, but leave vectors and codes their
            length: the lookup of DAC, arXiv 2306.06546. That library has no such argument.

    Raises:
        ValueError: a number is out of range, or arguments contradict each other. Also from the
            first synced training step, in all processes, where they have different arguments.

    In eval nothing is learned, no state changes, and the loss is 0.
    """

    decay = OfCodebook()
    eps = OfCodebook()
    threshold_ema_dead_code = OfCodebook()
    zero: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
        cosine_search: bool = False,
    ):
        given = dict(locals())
        super().__init__()
        given |= learning(given)._asdict()
        check(given)
        self.keep(given)

        codebook_dim = dim if codebook_dim is None else codebook_dim
        inner = codebook_dim * heads
        self.has_projections = inner != dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in, self.project_out = nn.Linear(dim, inner), nn.Linear(inner, dim)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(inner))

        self._heads = Heads(heads, separate_codebook_per_head)
        fmap = 3 if accept_3d_fmap else 2 if accept_image_fmap else None
        self._layout = Layout(dim, not channel_last or fmap is not None, fmap, heads > 1)
        self._codebook = make_codebook(given, self._heads.books)
        self.in_place_codebook_optimizer = (
            None
            if in_place_codebook_optimizer is None
            else in_place_codebook_optimizer(self._codebook.parameters())
        )
        self._routes = self._make_routes()
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def _make_routes(self) -> Routes:
        return Routes(Kinds(*(bool(getattr(self, name)) for name in Kinds._fields)))

    def __setattr__(self, name: str, value: Any) -> None:
        made = "_routes" in vars(self)
        late = made and name == "orthogonal_reg_weight" and value > 0
        if late and not self._codebook.learnable_codebook:
            raise AttributeError(
                "orthogonal_reg_weight of a VectorQuantize that was made without it must stay 0, "
                f"got {value!r}: its codes do not learn by a gradient"
            )
        super().__setattr__(name, value)
        # Changed after the module was made: also a weight, which may now be 0 or no longer.
        if made and name in (*Kinds._fields, *WEIGHTS):
            self._routes = self._make_routes()

    @property
    def ema_update(self) -> bool:
        """Whether the codes are moving averages."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes as they are stored, [K, d], or [heads, K, d] with separate books.

        Setting it replaces the moving averages, too, which would bring back the old codes.
        """
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        self._codebook.set_codes(codes if self.separate_codebook_per_head else codes[None])

    def pack_keepers(self) -> list[KeepsPack]:
        """As :meth:`Freezable.pack_keepers`."""
        return [self._codebook]

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices as :meth:`forward` returns them: [B, ..., d * heads].

        With a channel-first layout [B, d * heads, ...]. An index of -1 gives zeros.
        """
        return vectors_to_places(*self._codes_of(indices))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What :meth:`forward` returns for vectors with these indices: [B, ..., D], or like x."""
        codes, places = self._codes_of(indices)
        return vectors_to_places(self.vectors_of(codes), places)

    def vectors_of(self, codes: Tensor) -> Tensor:
        """codes [..., d * heads] -> [..., D], behind the projection, in the model's dtype.

        Codes that are averages stay in float32 where the model around them is in half precision.
        """
        vectors: Tensor = self.project_out(codes.to(self.zero.dtype))
        return vectors

    def update_in_place_optimizer(self) -> None:
        """Take the step of in_place_codebook_optimizer, by the gradients of all processes."""
        if self.in_place_codebook_optimizer is None:
            return
        self._codebook.average_gradients()
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def expire_codes_(self, x: Tensor) -> None:
        """Move dead codes to random ones of the projected vectors x [B, ..., d * heads]."""
        tokens, _ = to_tokens(x, False)
        self._codebook.expire_codes_(self._rows(tokens))

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Let the codes learn from vectors x whose codes are known, both as in :meth:`forward`."""
        tokens, places = self._layout.tokens(x)
        rows = self._rows(self.project_in(tokens)).detach()
        chosen = self._heads.split_indices(self._layout.index_tokens(indices)[0])
        mask = self._layout.mask(tokens, places, mask, None)
        counted = None if mask is None else self._heads.repeat(mask)
        self._codebook.update(rows, chosen, counted)

    update_ema_indices = update_indices

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: CodebookTransform | None = None,
        ema_update_weight: EmaWeight = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Any, ...]:
        """Quantize.

        Args:
            x: [B, ..., D] or [B, D]; [B, D, N] without channel_last; feature maps as constructed.
            indices: codes that are right; the result is then their cross-entropy.
            mask: bool [B, ...], x's shape without D; False: padding.
            lens: int [B], in place of a mask: how many of the first vectors are none.
            topk: give this many codes for each vector, nearest first, and a loss for each.
            sample_codebook_temp: instead of the constructor's.
            freeze_codebook: instead of the constructor's.
            return_loss_breakdown: return the loss's parts, too.
            codebook_transform_fn: gives each vector codes of its own: [C, K, d] ->
                [C, B, N, K, d]. That much memory is needed.
            ema_update_weight: how much more or less each code's average moves: a number, [K] or
                [C, K], or a function of (sums, counts).
            accum_ema_update: add this batch to the next that comes without.
            ema_update: instead of the constructor's.

        Returns:
            ``(quantized, indices, loss)``: quantized like x (with topk, k is the last dimension
            but D); indices int64, x's shape without D, -1 where masked, one more dimension for
            heads or topk; loss 0-d, and with topk for each code. A :class:`LossBreakdown` last if
            asked for. With ``indices``: ``(quantized, cross-entropy)``.

        Raises:
            ValueError: a shape does not fit, or arguments contradict each other.
        """
        tokens, places = self._layout.tokens(x)
        mask = self._layout.mask(tokens, places, mask, lens)
        wanted = self._wanted(topk, sample_codebook_temp, codebook_transform_fn, indices)
        targets: Tensor | None = None
        if indices is not None:
            right = self._layout.right_indices(indices, tokens, self.heads, self.codebook_size)
            targets = self._heads.split_indices(right)
        if ema_update_weight is not None:
            self._codebook.averages.check_weight(ema_update_weight)
        averaging = Averaging(ema_update_weight, accum_ema_update, ema_update)
        projected = self.project_in(tokens)
        with without_autocast(x.device.type):
            call = self._call(
                self._rows(projected),
                mask,
                wanted,
                freeze_codebook,
                averaging,
                keeps_codes=targets is not None,
            )
            chosen, loss, parts = self._routes.of(call, self.training).run(call)
            if targets is not None:
                loss = logits.cross_entropy(call.rows, chosen.codes, self.use_cosine_sim, targets)

        out = self.project_out(self._heads.merge(chosen.quantized).to(projected.dtype)).to(x.dtype)
        found = self._heads.merge_indices(chosen.indices)
        if mask is not None:
            padding = torch.zeros_like(tokens) if self.return_zeros_for_masked_padding else tokens
            out, found = with_padding(mask, padding, out, found)
        out, found = vectors_to_places(out, places), to_places(found, places)
        if indices is not None:
            return out, loss
        loss = losses_to_places(loss, places)
        if return_loss_breakdown:
            commitment = losses_to_places(parts.commitment, places)
            return out, found, loss, parts._replace(commitment=commitment)
        return out, found, loss

    def extra_repr(self) -> str:
        """What print() shows beside the parts."""
        cosine = ", use_cosine_sim=True" if self.use_cosine_sim else ""
        cosine += ", cosine_search=True" if self.cosine_search else ""
        return f"dim={self.dim}, codebook_size={self.codebook_size}, heads={self.heads}{cosine}"

    # From the input to rows of the codebook, and back.

    def _call(
        self,
        rows: Tensor,
        mask: Tensor | None,
        wanted: Wanted,
        frozen: bool | None,
        averaging: Averaging,
        *,
        keeps_codes: bool,
    ) -> Call:
        """What the routes see of a call; whatever padding holds, it has no effect in them."""
        counted = None if mask is None else self._heads.repeat(mask)
        if counted is not None:
            rows = torch.where(counted[..., None], rows, 0)
        frozen = self.freeze_codebook if frozen is None else frozen
        return Call(self, self._codebook, rows, counted, wanted, frozen, keeps_codes, averaging)

    def _wanted(
        self,
        topk: int | None,
        temperature: float | None,
        transform: CodebookTransform | None,
        indices: Tensor | None,
    ) -> Wanted:
        """What a call asks of the search.

        Raises:
            ValueError: it contradicts what the quantizer was made for.
        """
        topk = None if topk is None else check_topk(topk, self)
        if self.cosine_search and (indices is not None or transform is not None):
            raise ValueError(
                "indices and codebook_transform_fn do not go with cosine_search: distances are not "
                "what it chooses by"
            )
        temperature = self.sample_codebook_temp if temperature is None else temperature
        return Wanted(topk, temperature, transform)

    def _rows(self, projected: Tensor) -> Tensor:
        """[B, N, d * heads] -> [C, ..., N, d], in float32 at least, of unit length for cosine."""
        rows = self._heads.split(projected.to(common_float(projected.dtype, torch.float32)))
        if self.use_cosine_sim:
            return nn_functional.normalize(rows, dim=-1, eps=1e-6)
        return rows

    def _codes_of(self, indices: Tensor) -> tuple[Tensor, Places]:
        """Indices as forward returns them -> codes [B, N, d * heads], and where they belong."""
        tokens, places = self._layout.index_tokens(indices)
        codes = take_codes(self._codebook.codes(), self._heads.split_indices(tokens.clamp(min=0)))
        codes = self._heads.merge(
            torch.where(self._heads.split_indices(tokens)[..., None] < 0, 0, codes)
        )
        return codes.to(self._codebook.embed.dtype), places

    # As one of many stages.

    @property
    def communicates(self) -> bool:
        """Whether a training step calls the other processes, k-means aside."""
        return self._codebook.communicates

    def written(self) -> list[Tensor]:
        """What a training step writes to; as :meth:`Codebook.written`."""
        return self._codebook.written()

    def codes_in_use(self) -> Tensor:
        """The codes [C, K, d] as the search uses them, which need not be as they are stored."""
        return self._codebook.codes()

    def share_codebook(self, other: "VectorQuantize") -> None:
        """Use the other quantizer's codes from now on."""
        self._codebook = other._codebook

    def finish_shared_step(self, vectors: Tensor, mask: Tensor | None) -> None:
        """Write what several stages' calls have put into the averages, and expire codes, once.

        Args:
            vectors: [B, N, d], what all of them were given.
            mask: bool [B, N], False for what does not count.
        """
        if self.ema_update:
            self._codebook.update_ema()
        self.update_in_place_optimizer()
        self._codebook.expire_codes_(self._rows(vectors), None if mask is None else mask[None])
