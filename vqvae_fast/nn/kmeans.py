"""k-means on top of the exact search, and a codebook's initialisation by it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.distributed import from_first, rows_of_all, world_size
from vqvae_fast.nn.sampling import stratified_positions, take_rows


class KMeans(NamedTuple):
    """Result of :func:`kmeans`."""

    codes: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(samples: Tensor, num_codes: int, iterations: int = 10) -> KMeans:
    """Lloyd's algorithm from samples that lie far apart.

    The first codes are samples drawn with probability proportional to their squared distance from
    the codes drawn before, as in k-means++ (Arthur and Vassilvitskii, 2007), but as many at a time
    as there are already: the whole start costs one search, not K. A code that loses all its
    samples is drawn anew in the same way. Random draws come from torch's default generator of the
    samples' device.

    Args:
        samples: [n, D], n >= 1, finite.
        num_codes: K; it may exceed n: every sample is then a code, and the others are copies.
        iterations: number of rounds.

    Returns:
        ``(codes, counts)``: [K, D], and [K] the number of samples nearest to each code; float32
        (float64 for float64 samples).

    Raises:
        ValueError: there are no samples, or a number is not positive.
    """
    if samples.dim() != 2 or len(samples) == 0:
        raise ValueError(f"samples must be [n >= 1, D], got {list(samples.shape)}")
    if num_codes < 1 or iterations < 1:
        raise ValueError(
            f"num_codes and iterations must be at least 1, got {num_codes} and {iterations}"
        )
    samples = samples if samples.dtype == torch.float64 else samples.float()
    codes = _seed(samples, num_codes)
    for _ in range(iterations):
        indices, distances = functional.nearest_code(samples, codes)
        sums, counts = functional.segment_sum(samples, indices, num_codes)
        codes = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], codes)
        _fill_empty(codes, counts, samples, distances)
    indices, _ = functional.nearest_code(samples, codes)
    return KMeans(codes, functional.segment_sum(samples, indices, num_codes).counts)


def _seed(samples: Tensor, num_codes: int) -> Tensor:
    """Samples [n, D] to start from: [K, D]."""
    codes = samples[torch.randint(len(samples), (1,), device=samples.device)]
    distances = functional.nearest_code(samples, codes).distances
    while len(codes) < num_codes:
        new = samples[_draw(distances, min(len(codes), num_codes - len(codes)))]
        if len(new) == 0:  # every sample is a code already
            rest = (num_codes - len(codes),)
            new = samples[torch.randint(len(samples), rest, device=samples.device)]
        distances = torch.minimum(distances, functional.nearest_code(samples, new).distances)
        codes = torch.cat([codes, new])
    return codes


def _draw(weights: Tensor, number: int) -> Tensor:
    """Up to ``number`` distinct positions by weight [n]; never one whose weight is 0."""
    # The largest of weight / exponential is a draw by weight; the largest m are m distinct draws.
    keys = weights / torch.empty_like(weights).exponential_()
    return keys.topk(min(number, int((weights > 0).sum()))).indices


def _fill_empty(codes: Tensor, counts: Tensor, samples: Tensor, distances: Tensor) -> None:
    """Move codes without samples, in place, to distinct samples far from their codes."""
    empty = (counts == 0).nonzero()[:, 0]
    drawn = _draw(distances, len(empty))
    codes[empty[: len(drawn)]] = samples[drawn]


class KMeansInit(nn.Module):
    """Collects the latents of the first training batches until there are enough for k-means.

    Whether that has happened is a plain Python bool, so that a compiled training step carries no
    trace of it afterwards. Beside it the state dict holds the same fact and the vectors collected
    so far: a checkpoint taken in between continues where it stopped.

    Args:
        dim: D.
        num_samples: vectors to collect.
        num_codes: K.
        iterations: rounds of k-means.

    Buffers:
        initted: 0-d bool.
        samples: [n, D] with n < num_samples; [0, D] once it is done.
    """

    initted: Tensor
    samples: Tensor

    def __init__(self, num_codes: int, dim: int, num_samples: int, iterations: int):
        super().__init__()
        self.num_codes, self.num_samples, self.iterations = num_codes, num_samples, iterations
        self.done = False
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("samples", torch.empty(0, dim))

    @torch.compiler.disable
    @torch.no_grad()
    def collect(self, z: Tensor, *, synced: bool = False) -> KMeans | None:
        """Take in a batch's vectors [..., D]; the codes once there are enough, else None.

        ``synced``: the vectors of all processes count, and all get the same codes.
        """
        wanted = self.num_samples - len(self.samples)
        if synced:
            wanted = -(-wanted // world_size())
        count = z.shape[:-1].numel()
        draws = torch.arange(min(wanted, count), device=z.device)
        positions = draws
        if count > len(draws):
            positions = stratified_positions(draws, draws.new_tensor(len(draws)), count)
        rows = take_rows(z, positions).to(self.samples.dtype)
        rows = rows[rows.isfinite().all(dim=1)]
        if synced:  # at once: all processes have the same buffer, which others may broadcast
            rows = rows_of_all(rows)
        self.samples = torch.cat([self.samples, rows])
        if len(self.samples) < self.num_samples:
            return None
        result = kmeans(self.samples, self.num_codes, self.iterations)
        if synced:  # each has drawn its own: the first one's count
            result = KMeans(*(from_first(part) for part in result))
        self.finish()
        return result

    def finish(self) -> None:
        """Collect no more: the codebook has its codes."""
        self.samples = self.samples[:0].clone()
        self.initted.fill_(True)
        self.done = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "samples")
        if stored is not None and stored.shape[1:] == self.samples.shape[1:]:
            self.samples = self.samples.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.done = bool(self.initted)
