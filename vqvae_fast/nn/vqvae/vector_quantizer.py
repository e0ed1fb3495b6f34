"""The quantizer of a VQ-VAE: the reference's class, with a codebook that stays alive."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.agreement import require_same
from vqvae_fast.autograd.gather import copy_of_codes
from vqvae_fast.distributed import is_distributed
from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.dead_codes import replace_dead_codes
from vqvae_fast.nn.codebook.ema import CodeMovingAverage, CodeUsage
from vqvae_fast.nn.codebook.kept_pack import KeepsPack
from vqvae_fast.nn.codebook.kmeans_init import KMeansInit
from vqvae_fast.nn.codebook.metrics import code_counts, perplexity
from vqvae_fast.nn.steps.checks import check_feature_map, check_index_map, check_learning, positive
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.vqvae.one_hot import LazyOneHot
from vqvae_fast.packed import PackedCodebook
from vqvae_fast.tracing import called_while_tracing

# Samples that k-means gets for each code unless told otherwise.
_SAMPLES_PER_CODE = 4


class VectorQuantizer(Freezable, KeepsPack):
    """Replaces every vector of a feature map by its nearest code.

    The first three arguments, the results and ``embedding.weight`` are those of the reference
    VQ-VAE's class of this name. The loss is the article's (arXiv 1711.00937, eq. 3),
    ``mean((sg[z] - e)^2) + beta * mean((z - sg[e])^2)``.

    Args:
        n_e: K, number of codes.
        e_dim: D, dimension of a code.
        beta: weight of the commitment term; with ``legacy``, of the codebook term.
        legacy: the reference's loss, ``beta * mean((sg[z] - e)^2) + mean((z - sg[e])^2)``.
        learning: "gradient": the codebook is a parameter that the loss trains. "ema": it is the
            moving average of the vectors that choose it (appendix A.1); the loss then has its
            commitment term only, and the codebook no gradient.
        decay: of all moving averages, 0 <= decay < 1.
        eps: of the Laplace smoothing of "ema".
        kmeans_init: start from k-means over the first training batches. Until those are together
            the codes mean nothing: z_q is z in training, so that what follows learns from vectors
            and not from noise.
        kmeans_iters: rounds of k-means.
        kmeans_samples: vectors to collect for it, 4 * n_e unless given. Fewer than n_e also work.
        dead_code_threshold: before each training step, a code that is chosen by fewer vectors per
            batch than this (in the moving average) moves to a random vector of the batch. 0: never.
            Sensible values lie well below the mean, N / n_e. With "gradient", the optimizer
            keeps what momentum it has for the code.
        sparse: with "gradient", ``embedding.weight`` gets sparse gradients (see
            :func:`vqvae_fast.quantize`), for large codebooks and ``torch.optim.SparseAdam``.
        sync_codebook: all processes of ``torch.distributed`` learn one codebook: moving averages,
            k-means and replacements take the vectors of all as one batch. A process may have an
            empty batch, but must call the quantizer as often as the others. (A gradient is the
            business of whoever averages it, such as DistributedDataParallel.)

    Raises:
        ValueError: an argument is out of range. Also from the first synced training step, in all
            processes, where they have different arguments or dtypes.

    Modes: in eval, and for an empty batch (of all processes), nothing is learned and no state
    changes.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        legacy: bool = False,
        *,
        learning: Literal["gradient", "ema"] = "gradient",
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        kmeans_samples: int | None = None,
        dead_code_threshold: float = 0.0,
        sparse: bool = False,
        sync_codebook: bool = True,
    ):
        super().__init__()
        n_e, e_dim = positive("n_e", n_e), positive("e_dim", e_dim)
        kmeans_iters = positive("kmeans_iters", kmeans_iters)
        if kmeans_samples is None:
            kmeans_samples = _SAMPLES_PER_CODE * n_e
        kmeans_samples = positive("kmeans_samples", kmeans_samples)
        check_learning(learning, decay, eps, beta=beta, dead_code_threshold=dead_code_threshold)
        if sparse and learning != "gradient":
            raise ValueError(f"sparse gradients need learning='gradient', got {learning!r}")
        self.n_e, self.e_dim = n_e, e_dim
        self.beta, self.legacy = beta, legacy
        self.learning, self.dead_code_threshold = learning, dead_code_threshold
        self.sync_codebook = sync_codebook
        self.commitment_weight, self.codebook_weight = (1.0, beta) if legacy else (beta, 1.0)

        self.embedding = nn.Embedding(n_e, e_dim, sparse=sparse)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        self.ema: CodeUsage | None = None
        if learning == "ema":
            codes = self.embedding.weight.detach()
            # No parameter: what divides parameters over processes would undo writes to it.
            del self.embedding.weight
            self.embedding.register_buffer("weight", codes)
            self.codebook_weight = 0.0
            self.ema = CodeMovingAverage(codes, decay, eps)
        elif dead_code_threshold > 0:
            self.ema = CodeUsage(n_e, decay)
        self.kmeans: KMeansInit | None = None
        if kmeans_init:
            self.kmeans = KMeansInit(n_e, e_dim, kmeans_samples, kmeans_iters)

    @property
    def codebook(self) -> Tensor:
        """The codes [n_e, e_dim], which are ``embedding.weight``."""
        return self.embedding.weight

    @torch.no_grad()
    def set_codebook(self, codes: Tensor, cluster_size: Tensor | float = 1.0) -> None:
        """Replace all codes together with their moving averages, which would undo it otherwise.

        Args:
            codes: [n_e, e_dim].
            cluster_size: vectors per batch that each code stands for, a number or [n_e].
        """
        if codes.shape != self.codebook.shape:
            raise ValueError(f"codes must be {list(self.codebook.shape)}, got {list(codes.shape)}")
        self.codebook.copy_(codes)
        if self.ema is not None:
            everywhere = torch.ones(self.n_e, dtype=torch.bool, device=self.codebook.device)
            self.ema.reset(everywhere, self.codebook, cluster_size)
        if self.kmeans is not None:
            self.kmeans.finish()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, LazyOneHot, Tensor]:
        """Quantize a feature map.

        Args:
            z: [B, e_dim, H, W], any strides, none of which is copied. A z of half precision is
                quantized in the codebook's float32.

        Returns:
            ``(loss, z_q, perplexity, min_encodings, min_encoding_indices)``: the embedding loss,
            0-d; z_q like z, with the straight-through gradient; the batch's perplexity, 0-d; the
            one-hot rows [B*H*W, n_e], built only when they are read; and the indices
            [B*H*W, 1] int64, in the order batch, height, width.

        Raises:
            ValueError: z is not [B, e_dim, H, W].
            TypeError: z is not a tensor of floats.
        """
        check_feature_map(z, self.e_dim)
        synced = self.sync_codebook and is_distributed()
        learns = self.training and (z.numel() > 0 or synced)
        wide = z.to(common_float(z.dtype, self.codebook.dtype))
        rows = wide.detach().movedim(1, -1)
        collects = learns and self.kmeans is not None and not self.kmeans.done
        if learns:
            self._prepare(rows, synced)
        codebook = self.codebook
        if learns and (self.dead_code_threshold > 0 or collects) and codebook.requires_grad:
            # The backward pass needs the codes of this search, and the next forward pass, which
            # may come first, writes to them.
            codebook = copy_of_codes(codebook)
        packed = self._packed(wide)
        z_q, indices, loss, distances = functional.quantize(
            wide,
            codebook if packed is None else packed,
            commitment_weight=self.commitment_weight,
            codebook_weight=self.codebook_weight,
            channel_first=True,
            sparse=self.embedding.sparse and packed is None,
        )
        if collects and self.kmeans is not None:  # copies, which the caller may write to
            if (
                torch.compiler.is_compiling()
            ):  # whether this batch ended the collection is not known
                z_q = torch.where(self.kmeans.initted, z_q, wide)
            elif not self.kmeans.done:
                z_q = wide.clone()
        if learns and self.ema is not None:
            # A vector that is not finite says nothing about its code; one would destroy it.
            counted = torch.where(distances.isfinite(), indices, -1)
            self.ema.update(rows, counted, self.codebook, synced=synced)
        flat = indices.reshape(-1)
        encodings = LazyOneHot(flat, self.n_e, self.codebook.dtype)
        batch_perplexity = perplexity(code_counts(flat, self.n_e))
        return loss, z_q.to(z.dtype), batch_perplexity, encodings, flat[:, None]

    def encode(self, z: Tensor) -> Tensor:
        """Indices [B, H, W] of a feature map z [B, e_dim, H, W]; changes no state in any mode."""
        check_feature_map(z, self.e_dim)
        wide = z.detach().to(common_float(z.dtype, self.codebook.dtype))
        packed = self._packed(wide)
        codebook = self.codebook if packed is None else packed
        return functional.nearest_code(wide.movedim(1, -1), codebook).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Feature map [B, e_dim, H, W] of indices [B, H, W], int64 in [0, n_e)."""
        check_index_map(indices)
        codes: Tensor = self.embedding(indices)
        return codes.movedim(-1, 1)

    def extra_repr(self) -> str:
        """What print() shows beside the parts."""
        return f"n_e={self.n_e}, e_dim={self.e_dim}, beta={self.beta}, learning={self.learning!r}"

    def pack_keepers(self) -> list[KeepsPack]:
        """As :meth:`Freezable.pack_keepers`."""
        return [self]

    def _packed(self, z: Tensor) -> PackedCodebook | None:
        """The codes packed, if they are kept so and serve z."""
        if self._kept_pack is None or self.training or z.dtype != self.codebook.dtype:
            return None
        return self._kept_pack.of((self.codebook,), lambda: self.codebook)

    def _prepare(self, rows: Tensor, synced: bool) -> None:
        """Give a new codebook its codes, dead codes their place: before the search uses them."""
        if synced and (self.ema is not None or self.kmeans is not None):
            self._compare_processes(rows.dtype)
        if self.kmeans is not None and not self.kmeans.done:
            averages: dict[str, Tensor | None] = {"cluster_size": None, "embed_avg": None}
            if self.ema is not None:
                averages |= dict(self.ema.named_buffers(recurse=False))
            self.kmeans.start_(rows, self.codebook.detach(), **averages, synced=synced)
        if self.ema is not None and self.dead_code_threshold > 0:
            threshold = self.dead_code_threshold
            replace_dead_codes(rows, self.codebook, self.ema, threshold, synced=synced)

    @called_while_tracing
    def _compare_processes(self, dtype: torch.dtype) -> None:
        """Make sure, once, that all processes have this quantizer, and rows of this dtype."""
        require_same(self, "VectorQuantizer", lambda: self._arguments(dtype), self.codebook.device)

    def _arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """What must be the same in all processes that learn this codebook."""
        names = ("n_e", "e_dim", "beta", "legacy", "learning", "dead_code_threshold")
        arguments: dict[str, Any] = {name: getattr(self, name) for name in names}
        arguments |= {name: getattr(self.ema, name, None) for name in ("decay", "eps")}
        if self.kmeans is not None:
            arguments |= {
                "kmeans_iters": self.kmeans.iterations,
                "kmeans_samples": self.kmeans.num_samples,
                "kmeans.initted": bool(self.kmeans.initted),
            }
        return arguments | {"dtype of codes": self.codebook.dtype, "dtype of vectors": dtype}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Codes from a checkpoint without moving averages (a reference model's, say) bring their
        # own: the next EMA write, or k-means, would wipe them out. The parts load after this. What
        # the checkpoint has is left alone: its tensors may be this module's own.
        codes = state_dict.get(prefix + "embedding.weight")
        if codes is not None and codes.shape == self.codebook.shape:
            stored = {name.removeprefix(prefix).partition(".")[0] for name in state_dict}
            if self.ema is not None and "ema" not in stored:
                everywhere = torch.ones(self.n_e, dtype=torch.bool, device=self.codebook.device)
                self.ema.reset(everywhere, codes.to(self.codebook), 1.0)
            if self.kmeans is not None and "kmeans" not in stored:
                self.kmeans.finish()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
