"""A quantizer whose codes are divided over processes, for codebooks too large for one process."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from vqvae_fast.autograd.estimators import code_itself
from vqvae_fast.distributed import (
    each_from_its_turn,
    from_first,
    numbers_of_all,
    summed,
)
from vqvae_fast.dtypes import common_float
from vqvae_fast.formulas import smoothed_size
from vqvae_fast.nn.codebook.averages import Averages
from vqvae_fast.nn.codebook.dead_codes import start_anew
from vqvae_fast.nn.codebook.kept_pack import KeepsPack
from vqvae_fast.nn.codebook.metrics import code_counts
from vqvae_fast.nn.codebook.sampling import random_rows
from vqvae_fast.nn.steps.checks import check_feature_map, check_index_map, check_learning, positive
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.vqvae.one_hot import LazyOneHot
from vqvae_fast.nn.vqvae.quantizer import Quantizer
from vqvae_fast.sharded.code_shards import Batch, CodeShards


class ShardedVectorQuantizer(Freezable):
    """:class:`VectorQuantizer` with K codes over W processes, each of which holds K / W.

    The gradients, the moving averages and the optimizer's state are divided in the same way. The
    quantizer chooses and learns the codes as one VectorQuantizer would from the vectors of all
    processes. All processes must call it equally often; some may have an empty batch. A step sends
    2 D numbers for every vector and none for a code (docs/scaling.md).

    The state is held in DTensors under VectorQuantizer's names. torch.distributed.checkpoint saves
    them from W processes and loads them into any other number, or into a VectorQuantizer. Other
    wrappers that divide or copy parameters must ignore those of this module: :func:`sharded_state`
    names them.

    Args:
        n_e: K, the number of codes.
        e_dim: D, the length of a vector.
        beta: weight of the commitment term.
        mesh: a mesh of one dimension, over which the codes are divided; or of two dimensions, as
            for hybrid sharded data parallel: copies of the codebook over the first, its parts over
            the second.
        learning: "gradient" or "ema", as for VectorQuantizer.
        decay: the weight of the past in the moving averages.
        eps: the constant of the Laplace smoothing of cluster sizes.
        dead_code_threshold: as for VectorQuantizer. Replacements are vectors from all processes
            that together have the codes.

    Raises:
        ValueError: an argument is out of range or differs between the processes, or a process has
            no codes.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        *,
        mesh: DeviceMesh,
        learning: Literal["gradient", "ema"] = "gradient",
        decay: float = 0.99,
        eps: float = 1e-5,
        dead_code_threshold: float = 0.0,
    ):
        super().__init__()
        self.n_e, self.e_dim = positive("n_e", n_e), positive("e_dim", e_dim)
        check_learning(learning, decay, eps, beta=beta, dead_code_threshold=dead_code_threshold)
        self.beta, self.learning, self.decay, self.eps = beta, learning, decay, eps
        self.dead_code_threshold = dead_code_threshold
        names = ("e_dim", "beta", "learning", "decay", "eps", "dead_code_threshold")
        self.shards = CodeShards(self.n_e, mesh, {name: getattr(self, name) for name in names})
        part = _uniform(self.shards, self.e_dim)
        self.embedding = nn.Module()
        self.ema: nn.Module | None = None
        if learning == "gradient":
            self.embedding.weight = nn.Parameter(self.shards.dtensor(part))
        else:
            self.embedding.register_buffer("weight", self.shards.dtensor(part))
        if learning == "ema" or dead_code_threshold > 0:
            self.ema = nn.Module()
            ones = torch.ones(self.shards.count, device=part.device)
            self.ema.register_buffer("cluster_size", self.shards.dtensor(ones))
        if self.ema is not None and learning == "ema":
            self.ema.register_buffer("embed_avg", self.shards.dtensor(part.clone()))

    @property
    def codebook(self) -> DTensor:
        """The codes [n_e, e_dim], a DTensor."""
        weight = self.embedding.weight
        assert isinstance(weight, DTensor)
        return weight

    def pack_keepers(self) -> list[KeepsPack]:
        """Raise ValueError; see :meth:`Freezable.pack_keepers`."""
        raise ValueError(
            "a ShardedVectorQuantizer cannot be frozen: its processes write to the codes by "
            "collectives, whose writes torch does not count; load the codes into a VectorQuantizer"
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, LazyOneHot, Tensor]:
        """Quantize this process's feature map z [B, e_dim, H, W], together with all others.

        Returns:
            ``(loss, z_q, perplexity, min_encodings, min_encoding_indices)``, as
            :meth:`VectorQuantizer.forward` does. The loss covers this process's vectors, the
            perplexity those of all processes.

        Raises:
            ValueError: z is not [B, e_dim, H, W].
            TypeError: z is not a tensor of floats.
        """
        check_feature_map(z, self.e_dim)
        last = z.movedim(1, -1)
        batch, rows = self._gathered(last)
        if self.training and self.ema is not None and self.dead_code_threshold > 0:
            self._replace_dead_codes(rows)
        codes = self.codebook.to_local()
        if self.training and self.learning == "gradient" and self.dead_code_threshold > 0:
            codes = codes.clone()  # the next step may write to the codes before this backward pass
        indices, distances = self.shards.search(rows, codes.detach())
        taken = self.shards.take(codes, indices, batch.sizes).view(last.shape)
        wide = last.to(taken.dtype)
        loss = self._loss(wide, taken)
        z_q = code_itself(wide, taken)
        if self.training and self.ema is not None and self._anywhere(len(rows)):
            # A vector that is not finite, or infinitely far from all codes, would destroy its code.
            usable = rows.isfinite().all(dim=1) & distances.to(rows.dtype).isfinite()
            self._move_on(rows, torch.where(usable, self.shards.local(indices), -1))
        mine = indices.split(batch.sizes)[self.shards.part]
        encodings = LazyOneHot(mine, self.n_e, codes.dtype)
        perplexity = self._perplexity(indices)
        return loss, z_q.to(z.dtype).movedim(-1, 1), perplexity, encodings, mine[:, None]

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Return the indices [B, H, W] of z [B, e_dim, H, W]; all processes must call it."""
        check_feature_map(z, self.e_dim)
        last = z.movedim(1, -1)
        batch, rows = self._gathered(last)
        indices, _ = self.shards.search(rows, self.codebook.to_local())
        mine: Tensor = indices.split(batch.sizes)[self.shards.part]
        return mine.view(last.shape[:-1])

    def decode(self, indices: Tensor) -> Tensor:
        """Return the feature map [B, e_dim, H, W] of indices [B, H, W]; all processes must call it.

        Raises:
            ValueError: indices are not int64 [B, H, W], or those of any process are not in [0,
                n_e); then all processes raise it.
        """
        check_index_map(indices)
        batch = self.shards.gather(indices.reshape(-1))
        if len(batch.rows) and not 0 <= batch.rows.min() <= batch.rows.max() < self.n_e:
            raise ValueError(
                f"indices must be from 0 to {self.n_e - 1}, "
                f"got {int(batch.rows.min())} to {int(batch.rows.max())}"
            )
        codes: Tensor = self.shards.take(self.codebook.to_local(), *batch)
        return codes.view(*indices.shape, self.e_dim).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the text that print() shows beside the submodules."""
        shards = self.shards
        return (
            f"n_e={self.n_e}, e_dim={self.e_dim}, beta={self.beta}, learning={self.learning!r}, "
            f"here={shards.first}..{shards.first + shards.count - 1}"
        )

    def _gathered(self, last: Tensor) -> tuple[Batch, Tensor]:
        """Returns the vectors [..., D] of all processes, as sent and in the codes' dtype."""
        dtypes = {"dtype of codes": self.codebook.dtype, "dtype of vectors": last.dtype}
        self.shards.require_same(self, dtypes)
        batch = self.shards.gather(last.detach().reshape(-1, self.e_dim))
        return batch, batch.rows.to(common_float(last.dtype, self.codebook.dtype))

    def _loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Returns the article's loss of z and q [..., D]; 0 for an empty batch."""
        size = max(z.numel(), 1)
        loss = self.beta * (z - q.detach()).square().sum() / size
        if self.learning == "gradient":
            loss = loss + (z.detach() - q).square().sum() / size
        return loss

    @torch.no_grad()
    def _perplexity(self, indices: Tensor) -> Tensor:
        """Returns the perplexity of indices [N]; each process counts its own codes."""
        counts = code_counts(self.shards.local(indices), self.shards.count).float()
        share = counts / max(len(indices), 1)
        (entropy,) = summed((share * (share + 1e-10).log()).sum(), group=self.shards.group)
        return torch.exp(-entropy)

    @torch.no_grad()
    def _anywhere(self, count: int) -> bool:
        """Returns whether any process has vectors; those of the group have ``count`` in total."""
        if self.shards.copies is None:
            return count > 0
        (everywhere,) = summed(
            torch.tensor(count, device=self.codebook.device), group=self.shards.copies
        )
        return bool(everywhere > 0)

    @torch.no_grad()
    def _move_on(self, rows: Tensor, counted: Tensor) -> None:
        """Averages in rows [N, D]; counted [N] is each row's code in this part, or -1."""
        averages, shards = self._averages(), self.shards
        batch = averages.batch(rows, counted)
        averages.average_in(
            batch if shards.copies is None else batch.of_all(shards.copies), self.decay
        )
        if averages.embed_avg is not None:
            size = averages.cluster_size
            (total,) = summed(size.sum(dim=-1, keepdim=True), group=shards.group)
            smoothed = smoothed_size(size, self.eps, total=total, num_codes=self.n_e)
            averages.write_means(self.codebook.to_local(), smoothed)

    @torch.no_grad()
    def _replace_dead_codes(self, rows: Tensor) -> None:
        """Replaces the codes that are chosen too rarely by distinct ones of rows [N, D]."""
        averages = self._averages()
        dead = averages.dead(self.dead_code_threshold).nonzero()[:, 0]
        numbers = numbers_of_all(len(dead), rows.device, self.shards.group)
        if not sum(numbers) or not (len(rows) or self.shards.copies):
            return
        rank = torch.arange(len(dead), device=rows.device) + sum(numbers[: self.shards.part])
        codes = random_rows(rows, rank, rank.new_tensor(sum(numbers)))
        if self.shards.copies is not None:
            available = torch.tensor(len(rows) > 0, device=rows.device)
            codes, found = each_from_its_turn(codes, available, self.shards.copies)
            dead, codes = dead[found], codes[found]
        start_anew(
            self.codebook.to_local().detach(), averages, dead, codes, self.dead_code_threshold
        )

    def _averages(self) -> Averages:
        """The averages of this part's ``count`` codes."""
        assert self.ema is not None
        buffers: dict[str, Any] = dict(self.ema.named_buffers())
        parts = {name: buffer.to_local() for name, buffer in buffers.items()}
        return Averages(parts["cluster_size"], parts.get("embed_avg"))


if TYPE_CHECKING:  # the type checker finds what is missing of the protocol
    _: type[Quantizer] = ShardedVectorQuantizer


def _uniform(shards: CodeShards, dim: int) -> Tensor:
    """Draws codes [count, dim] as the reference does; copies of a part get the same codes."""
    device = torch.empty(0, device=shards.mesh.device_type).device
    seed = torch.empty((), dtype=torch.int64).random_(1 << 62).to(device)
    for group in (shards.copies, shards.group):  # the values of the mesh's first process
        seed = seed if group is None else from_first(seed, group)
    generator = torch.Generator(device).manual_seed(int(seed) + shards.part)
    return torch.empty(shards.count, dim, device=device).uniform_(
        -1 / shards.num_codes, 1 / shards.num_codes, generator=generator
    )


def sharded_state(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers of all sharded quantizers in a model.

    Other wrappers must ignore them. For DistributedDataParallel, set
    ``model._ddp_params_and_buffers_to_ignore = sharded_state(model)`` before wrapping; for
    ``fully_shard``, pass the parameters of these names as ``ignored_params``.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, ShardedVectorQuantizer)
        for name in module.state_dict()
    ]
