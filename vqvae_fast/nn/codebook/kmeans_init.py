"""The start of a codebook by k-means over the first training batches."""

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vqvae_fast.distributed import from_first, rows_of_all, summed, world_size
from vqvae_fast.nn.codebook.averages import Averages
from vqvae_fast.nn.codebook.host_flag import StartsOnce
from vqvae_fast.nn.codebook.kmeans import KMeansResult, kmeans
from vqvae_fast.nn.codebook.sampling import stratified_positions, take_rows


class KMeansInit(StartsOnce):
    """Collects the latents of the first training batches until there are enough for k-means.

    The state dict says whether that has happened. The vectors collected so far are no part of it,
    since their number changes with every batch, and whatever copies a state dict or buffers in
    place (AveragedModel, the average of a teacher) needs constant shapes. A checkpoint that is to
    continue in between keeps ``samples``, too; from any other it collects anew.

    Args:
        num_codes: K, the number of codes.
        dim: D, the length of a vector.
        num_samples: vectors to collect.
        iterations: rounds of k-means.

    Attributes:
        samples: [n, D] with n < num_samples; [0, D] once it is done.

    Buffers:
        initted: 0-d bool; False makes the collection start.
    """

    def __init__(self, num_codes: int, dim: int, num_samples: int, iterations: int):
        super().__init__(started=False)
        self.num_codes, self.num_samples, self.iterations = num_codes, num_samples, iterations
        self.samples = torch.empty(0, dim)
        self._enter()

    @property
    def done(self) -> bool:
        """Whether the codebook has its codes."""
        return self.started

    def start_(
        self,
        z: Tensor,
        codebook: Tensor,
        cluster_size: Tensor | None,
        embed_avg: Tensor | None,
        *,
        synced: bool = False,
    ) -> None:
        """Take in a batch, and write the codes and their averages once there is enough of it.

        torch.compile sees one op here, whose graph is left when the codes are there.

        Args:
            z: [..., D].
            codebook: [K, D].
            cluster_size: [K], if there is an average of it.
            embed_avg: [K, D], the same.
            synced: the vectors of all processes count, and all get the same codes.
        """
        torch.ops.vqvae_fast.start_by_kmeans_(
            self.initted, codebook, cluster_size, embed_avg, z, self._key, synced
        )

    @torch.no_grad()
    def collect(self, z: Tensor, *, synced: bool = False) -> KMeansResult | None:
        """Take in a batch's vectors [..., D]; the codes once there are enough, else None."""
        wanted = self.num_samples - len(self.samples)
        if synced:
            wanted = -(-wanted // world_size())
        count = z.shape[:-1].numel()
        draws = torch.arange(min(wanted, count), device=z.device)
        positions = draws
        if count > len(draws):
            positions = stratified_positions(draws, draws.new_tensor(len(draws)), count)
        rows = take_rows(z, positions)
        rows = rows[rows.isfinite().all(dim=1)]
        if synced:  # at once, so that all processes hold the same samples
            rows = rows_of_all(rows)
        # Samples of the meta device, as a model is made on, are none; they cannot be moved.
        self.samples = torch.cat([self.samples.to(rows), rows]) if len(self.samples) else rows
        if len(self.samples) < self.num_samples:
            return None
        result = kmeans(self.samples, self.num_codes, self.iterations)
        if synced:  # each process has drawn its own: the first one's count
            result = KMeansResult(*(from_first(part) for part in result))
        return result

    def load_samples(self, samples: Tensor) -> None:
        """Go on with the samples [n, D] that a checkpoint has kept.

        Raises:
            ValueError: they are not vectors of this codebook, or are more than it collects.
        """
        if not samples.is_floating_point() or samples.dim() != 2:
            raise ValueError(f"samples must be floats [n, D], got {list(samples.shape)}")
        if samples.shape[1] != self.samples.shape[1] or len(samples) >= self.num_samples:
            wanted = f"[n < {self.num_samples}, D={self.samples.shape[1]}]"
            raise ValueError(f"samples must be {wanted}, got {list(samples.shape)}")
        self.samples = samples

    def finish(self) -> None:
        """Collect no more: the codebook has its codes."""
        self._end(self.initted)

    def _end(self, initted: Tensor) -> None:
        self.samples = self.samples[:0].clone()
        self._initted.write(initted, True)

    def _enter(self) -> None:
        """Be known to the op, which gets tensors and numbers only."""
        self._key = next(_keys)
        _by_key[self._key] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it bare
        self._enter()  # a copy is not the original

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Older checkpoints hold the samples; others begin the collection, or end it.
        stored = state_dict.pop(prefix + "samples", self.samples[:0])
        if any(name.startswith(prefix) for name in state_dict):
            self.samples = stored.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_keys = itertools.count()
_by_key: WeakValueDictionary[int, KMeansInit] = WeakValueDictionary()

_library = torch.library.Library("vqvae_fast", "FRAGMENT")
_library.define(
    "start_by_kmeans_(Tensor(a!) initted, Tensor(b!) codebook, Tensor(c!)? cluster_size, "
    "Tensor(d!)? embed_avg, Tensor z, int key, bool synced) -> ()"
)


def _start_by_kmeans_(
    initted: Tensor,
    codebook: Tensor,
    cluster_size: Tensor | None,
    embed_avg: Tensor | None,
    z: Tensor,
    key: int,
    synced: bool,
) -> None:
    """Writes to the tensors that it is given: of a compiled module's they may be copies."""
    init = _by_key[key]
    if initted:  # something else has brought the codes: a compiled graph of collecting ends
        init._read_initted()
        return
    if torch._C._current_graph_task_id() != -1:
        return  # a backward pass computes a checkpointed step again, whose batch is collected
    result = init.collect(z, synced=synced)
    if result is None:
        return
    batch = torch.tensor(z.shape[:-1].numel(), dtype=result.counts.dtype, device=z.device)
    if synced:
        (batch,) = summed(batch)
    # A code without samples counts as if it had one: a size of 0 would divide by it.
    sizes = result.counts.clamp(min=1) * (batch / result.counts.sum())
    codebook.copy_(result.codes)
    if cluster_size is not None:
        cluster_size.copy_(sizes)
        Averages(cluster_size, embed_avg).stand_at(codebook, cluster_size)
    init._end(initted)


@torch.library.register_fake("vqvae_fast::start_by_kmeans_", lib=_library)
def _(*arguments: Any) -> None:
    return None


_library.impl("start_by_kmeans_", _start_by_kmeans_, "CompositeExplicitAutograd")
