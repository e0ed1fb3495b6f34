"""The codebook of the drop-in quantizers: its codes, and all state that they learn by."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from vqvae_fast.agreement import require_same
from vqvae_fast.autograd.gather import copy_of_codes
from vqvae_fast.distributed import is_distributed, summed, world_size
from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.averages import Averages, BatchSums, EmaWeight
from vqvae_fast.nn.codebook.dead_codes import shuffled_replacements, start_anew
from vqvae_fast.nn.codebook.host_flag import StartsOnce
from vqvae_fast.nn.codebook.kept_pack import KeepsPack, tensors_of
from vqvae_fast.nn.codebook.kmeans import lloyd
from vqvae_fast.nn.codebook.undoing import undone_unless
from vqvae_fast.nn.codebook.wide_buffers import WideBuffers
from vqvae_fast.packed import PackedCodebook
from vqvae_fast.tracing import called_while_tracing

# Attributes that must be the same in all processes, or the codes would learn wrongly or hang.
_SAME_EVERYWHERE = (
    *("codebook_size", "num_codebooks", "learnable_codebook", "ema_update", "manual_ema_update"),
    *("decay", "eps", "threshold_ema_dead_code", "reset_cluster_size", "use_cosine_sim"),
    *("kmeans_iters", "sync_kmeans"),
)


class Codebook(KeepsPack, StartsOnce, WideBuffers):
    """C books of K codes, with vector-quantize-pytorch's names and state.

    Args:
        dim: d, of a code.
        codebook_size: K, the number of codes.
        num_codebooks: C, the number of books.
        kmeans_init: the codes are zeros until the first training batch, which k-means starts them
            from.
        kmeans_iters: its rounds.
        sync_kmeans: over the samples of all processes.
        decay: of the moving averages.
        eps: of their Laplace smoothing.
        threshold_ema_dead_code: a code that is chosen by fewer vectors per batch than this, in the
            moving average, moves to a random vector of the batch. 0: never.
        reset_cluster_size: its average then starts from this; the threshold unless given.
        use_ddp: all processes learn the same codes.
        learnable_codebook: the codes are a parameter.
        ema_update: they are moving averages of the vectors that choose them.
        manual_ema_update: only when :meth:`update_ema` is called.
        use_cosine_sim: codes have unit length.
        vq_bridge: transforms the codes before each use.

    Buffers:
        initted: 0-d bool, whether there are codes; False makes the next training batch start them
        anew by k-means. cluster_size: [C, K]; embed_avg: [C, K, d]; embed: [C, K, d], a parameter
        with ``learnable_codebook``.
    """

    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        *,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        reset_cluster_size: float | None = None,
        use_ddp: bool = False,
        learnable_codebook: bool = False,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        use_cosine_sim: bool = False,
        vq_bridge: nn.Module | None = None,
    ):
        super().__init__(started=not kmeans_init)
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.decay, self.eps = decay, eps
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.kmeans_iters, self.sync_kmeans = kmeans_iters, use_ddp and sync_kmeans
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self._reset_cluster_size = reset_cluster_size
        self.use_ddp, self.use_cosine_sim = use_ddp, use_cosine_sim
        self.learnable_codebook = learnable_codebook
        self.vq_bridge = vq_bridge

        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = nn_functional.normalize(embed, dim=-1) if use_cosine_sim else embed
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        # What steps with ``accumulate`` have left to the next step without it; no part of the
        # state dict, like vector-quantize-pytorch's, which keeps it in the buffers' ``grad``.
        self.pending: BatchSums | None = None

    @property
    def averages(self) -> Averages:
        """The buffers, with what can be done to them."""
        return Averages(self.cluster_size, self.embed_avg)

    @property
    def expires(self) -> bool:
        """Whether dead codes are replaced."""
        return self.threshold_ema_dead_code > 0

    @property
    def reset_cluster_size(self) -> float:
        """The cluster size with which a code that has moved starts; the threshold unless given."""
        given = self._reset_cluster_size
        return self.threshold_ema_dead_code if given is None else given

    @reset_cluster_size.setter
    def reset_cluster_size(self, size: float | None) -> None:
        self._reset_cluster_size = size

    @property
    def communicates(self) -> bool:
        """Whether a training step calls the other processes, k-means aside."""
        return self.use_ddp and (self.ema_update or self.expires)

    @called_while_tracing
    def compare_processes(self, dtype: torch.dtype) -> None:
        """Make sure, once, that all processes have this codebook, and rows of this dtype.

        Raises:
            ValueError: they have not; in all processes.
        """
        if is_distributed():
            require_same(self, "VectorQuantize", lambda: self._arguments(dtype), self.embed.device)

    def _arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """What must be the same in all processes that learn this codebook."""
        return {name: getattr(self, name) for name in _SAME_EVERYWHERE} | {
            "codebook_dim": self.embed.shape[-1],
            "initted": bool(self.initted),
            "dtype of codes": self.embed_avg.dtype,
            "dtype of vectors": dtype,
        }

    def codes(self, keep: bool = False, ema_update: bool | None = None) -> Tensor:
        """[C, K, d], as the search uses them: with a gradient where they are learned by one.

        Args:
            keep: return a snapshot that the next :meth:`update` will not change. What autograd
                will ask for is one in any case.
            ema_update: as that update will get it.
        """
        embed = self.embed if self.learnable_codebook else self.embed.detach()
        embed = embed.to(common_float(embed.dtype, torch.float32))
        keep = keep or (embed.requires_grad and torch.is_grad_enabled())
        if keep and self.training and self.writes(ema_update):
            embed = copy_of_codes(embed)
        if self.use_cosine_sim and self.learnable_codebook:
            embed = nn_functional.normalize(embed, dim=-1)
        if self.vq_bridge is not None:
            # In a model of half precision the bridge is in that, the codes are not.
            weight = next(self.vq_bridge.parameters(), embed)
            embed = self.vq_bridge(embed.to(weight.dtype)).to(embed.dtype)
        return embed

    def packed(self, compared: Callable[[Tensor], Tensor]) -> PackedCodebook | None:
        """What a search compares in the place of the codes, packed; None if it is not kept.

        Args:
            compared: makes it of the codes [C, K, d] and depends on nothing else.
        """
        if self._kept_pack is None or self.training:
            return None
        bridge = () if self.vq_bridge is None else tuple(self.vq_bridge.modules())
        if any(part.training for part in bridge):  # it may draw numbers
            return None
        return self._kept_pack.of(
            (*self._stored(), *tensors_of(bridge)),
            lambda: compared(self.codes()),
            (compared, *bridge),
        )

    def _stored(self) -> tuple[Tensor, ...]:
        """The buffers and parameters of this module that :meth:`codes` reads."""
        return (self.embed,)

    def average_gradients(self) -> None:
        """Replace the gradients of the parameters by their means over all processes."""
        if not self.use_ddp:
            return
        self.compare_processes(self.embed.dtype)
        for parameter in self.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= world_size()

    def writes(self, ema_update: bool | None = None) -> bool:
        """Whether :meth:`update` with this argument writes to the codes."""
        return self.expires or (self.ema_update if ema_update is None else ema_update)

    def written(self) -> list[Tensor]:
        """What a training step writes to; nothing until k-means has started the codes.

        That happens once, and is not undone for a stage that quantize dropout leaves out.
        """
        learns = self.started and self.writes()
        return [self.cluster_size, self.embed_avg, self.embed] if learns else []

    def observe(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Learn from rows [C, ..., d], before the search, what :meth:`codes` depends on."""

    def prepare(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Before a training step's search: :meth:`init_once` and :meth:`observe`."""
        self.init_once(rows, mask)
        self.observe(rows, mask)

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Replace all codes [C, K, d], and the averages, which would bring back the old ones."""
        if codes.shape != self.embed.shape:
            raise ValueError(f"codes must be {list(self.embed.shape)}, got {list(codes.shape)}")
        self.embed.copy_(nn_functional.normalize(codes, dim=-1) if self.use_cosine_sim else codes)
        averages = self.averages
        averages.stand_at(self.embed, averages.smoothed(self.eps))
        self._finish_init()

    def init_once(self, data: Tensor, mask: Tensor | None = None) -> None:
        """:meth:`init_embed_`, until it has been done; nothing waits for the device then."""
        if not self.started:
            self.init_embed_(data, mask)

    @torch.no_grad()
    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """Start from k-means over data [C, ..., d], of which mask [C, ...] counts; once."""
        if self.started:
            return
        valid = _counted(data, mask).flatten(1)
        number = valid.numel()
        if self.sync_kmeans:  # an empty batch of one process is none of all
            self.compare_processes(data.dtype)
            (total,) = summed(torch.tensor(number, device=data.device))
            number = int(total)
        if number == 0:
            return
        data = data.flatten(1, -2)
        codes, counts = lloyd(
            data,
            valid,
            self.codebook_size,
            self.kmeans_iters,
            cosine=self.use_cosine_sim,
            synced=self.sync_kmeans,
        )
        start = functools.partial(self._start_from, codes, counts)
        if torch.compiler.is_compiling():
            # The compiler may use this graph for another module, which has its codes.
            state = [self.cluster_size, self.embed_avg, self.embed]
            undone_unless(~self.initted, lambda: state, start)
        else:
            start()
        self._finish_init()

    def _start_from(self, codes: Tensor, counts: Tensor) -> None:
        """Write codes [C, K, d] that k-means has found, each for counts [C, K] vectors."""
        averages = self.averages
        self.cluster_size.copy_(counts)
        # A code that got no vector stays where k-means has left it.
        averages.stand_at(codes, torch.where(counts > 0, counts, averages.smoothed(self.eps)))
        self.embed.copy_(codes)
        self.update_ema()

    @torch.no_grad()
    def update_ema(self) -> None:
        """Write the averages into the codes."""
        averages = self.averages
        if self.use_cosine_sim:
            averages.write_directions(self.embed)
        else:
            averages.write_means(self.embed, averages.smoothed(self.eps))

    @torch.no_grad()
    def update(
        self,
        rows: Tensor,
        indices: Tensor,
        mask: Tensor | None = None,
        *,
        weight: EmaWeight = None,
        accumulate: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """One step of the averages, of the codes, and of the dead among them.

        Args:
            rows: [C, ..., d].
            indices: [C, ...], their codes; -1: left out.
            mask: [C, ...], which rows count.
            weight: [K] or [C, K], by which each code moves more or less than 1 - decay says, or
                a function of (sums [C, K, d], counts [C, K]) that gives it.
            accumulate: only add the batch to the next that does not accumulate.
            ema_update: instead of the codebook's own.
        """
        if not self.writes(ema_update):
            return
        if self.use_ddp:
            self.compare_processes(rows.dtype)
        ema_update = self.ema_update if ema_update is None else ema_update
        valid = _counted(rows, mask)
        chosen = torch.where(valid, indices, -1)
        rows = self._unplaced(rows)
        averages = self.averages
        writes = ema_update and not self.manual_ema_update
        if writes and not accumulate and weight is None and self._moves_at_once:
            averages.move_on(rows, chosen, self.embed, self.decay, self.eps)
            self._expire(rows, valid)
            return
        batch = averages.batch(rows, chosen)
        batch = batch.of_all() if self.use_ddp else batch
        if callable(weight):
            assert batch.sums is not None
            weight = weight(batch.sums, batch.counts)
        batch = batch.plus(self.pending)
        if accumulate:
            self.pending = batch
            return
        self.pending = None
        averages.average_in(batch, self.decay, weight)
        if writes:
            self.update_ema()
        self._expire(rows, valid)

    @property
    def _moves_at_once(self) -> bool:
        """Whether the averages and the codes may move in one pass over the book."""
        return not (self.use_cosine_sim or self.use_ddp) and self.pending is None

    def update_indices(
        self,
        x: Tensor,
        embed_ind: Tensor,
        mask: Tensor | None = None,
        ema_update_weight: EmaWeight = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """:meth:`update` for vectors x [C, ..., d] or [B, N, d] and the codes that they have."""
        x = x.to(common_float(x.dtype, torch.float32))
        if x.dim() < 4:
            x, embed_ind = x[None], embed_ind[None]
            mask = mask if mask is None else mask[None]
        self.update(
            x,
            embed_ind,
            mask,
            weight=ema_update_weight,
            accumulate=accum_ema_update,
            ema_update=ema_update,
        )

    update_ema_indices = update_indices

    @torch.no_grad()
    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Move dead codes to random vectors of [C, ..., d], of which seq_mask [C, ...] counts."""
        if not self.training or not self.expires:
            return
        if self.use_ddp:
            self.compare_processes(batch_samples.dtype)
        self._expire(self._unplaced(batch_samples), _counted(batch_samples, seq_mask))

    def _unplaced(self, rows: Tensor) -> Tensor:
        """Rows [C, ..., d] among the codes as they are stored."""
        return rows

    def _expire(self, rows: Tensor, valid: Tensor) -> None:
        if not self.expires or (rows.numel() == 0 and not self.use_ddp):
            return
        rows, valid = rows.flatten(1, -2), valid.flatten(1)
        if self.use_cosine_sim:
            rows = nn_functional.normalize(rows, dim=-1)
        averages = self.averages
        dead = averages.dead(self.threshold_ema_dead_code)
        books = zip(rows, valid, dead, strict=True)
        drawn = [shuffled_replacements(*book, synced=self.use_ddp) for book in books]
        moved, codes = (torch.stack(part) for part in zip(*drawn, strict=True))
        codes = codes.to(self.embed_avg.dtype)
        start_anew(self.embed, averages, moved, codes, self.reset_cluster_size)

    def _finish_init(self) -> None:
        self._initted.write(self.initted, True)


def _counted(rows: Tensor, mask: Tensor | None) -> Tensor:
    """rows [C, ..., d] that say something about a code: one that is not finite would destroy it."""
    finite = rows.isfinite().all(dim=-1)
    return finite if mask is None else finite & mask
