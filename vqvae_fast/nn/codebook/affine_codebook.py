"""The affine reparametrisation: codes follow the vectors' mean and variance."""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.distributed import is_distributed, summed
from vqvae_fast.nn.codebook.codebook import Codebook


class AffineCodebook(Codebook):
    """Codes that are moved and stretched, in each dimension, to where the batch's vectors are.

    Huh et al., "Straightening out the straight-through estimator", arXiv 2305.08842, section 4.1:
    ``c = (e - mean(e)) * std(z) / std(e) + mean(z)`` with moving averages of all four.

    Args:
        sync_affine_param: the statistics are those of all processes' vectors.
        affine_param_batch_decay: of the vectors' averages.
        affine_param_codebook_decay: of the codes' averages.
        arguments: those of :class:`Codebook`.

    Buffers:
        batch_mean, batch_variance, codebook_mean, codebook_variance: [C, 1, d];
        codebook_mean_needs_init, codebook_variance_needs_init: 0-d bool, until the first training
        batch. Until then the codes are used as they are.
    """

    batch_mean: Tensor
    batch_variance: Tensor
    codebook_mean: Tensor
    codebook_variance: Tensor
    codebook_mean_needs_init: Tensor
    codebook_variance_needs_init: Tensor

    def __init__(
        self,
        *arguments: Any,
        sync_affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        **keywords: Any,
    ):
        super().__init__(*arguments, **keywords)
        self.sync_affine_param = sync_affine_param
        self.batch_decay = affine_param_batch_decay
        self.codebook_decay = affine_param_codebook_decay
        shape = (self.num_codebooks, 1, self.embed.shape[-1])
        for name in ("codebook", "batch"):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_variance", torch.ones(shape))
        self.register_buffer("codebook_mean_needs_init", torch.tensor(True))
        self.register_buffer("codebook_variance_needs_init", torch.tensor(True))

    @property
    def communicates(self) -> bool:
        """Also for the statistics."""
        return super().communicates or self.sync_affine_param

    @torch.no_grad()
    def observe(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Average in the mean and the variance of rows [C, ..., d] and of the codes."""
        synced = self.sync_affine_param and is_distributed()
        if rows.numel() == 0 and not synced:
            return
        if synced:
            self.compare_processes(rows.dtype)
        new = self.codebook_mean_needs_init.clone()
        mean, variance = _moments(self.embed, None, False)
        self._average_in("codebook_mean", mean, self.codebook_decay, new)
        self._average_in("codebook_variance", variance, self.codebook_decay, new)
        mean, variance = _moments(rows, mask, synced)
        self._average_in("batch_mean", mean, self.batch_decay, new)
        self._average_in("batch_variance", variance, self.batch_decay, new)
        self.codebook_mean_needs_init.fill_(False)
        self.codebook_variance_needs_init.fill_(False)

    def written(self) -> list[Tensor]:
        """With the statistics, which are observed before k-means, too."""
        return [
            *super().written(),
            self.batch_mean,
            self.batch_variance,
            self.codebook_mean,
            self.codebook_variance,
            self.codebook_mean_needs_init,
            self.codebook_variance_needs_init,
        ]

    def codes(self, keep: bool = False, ema_update: bool | None = None) -> Tensor:
        """[C, K, d], where the vectors are."""
        scale = self._deviation("batch") / self._deviation("codebook")
        return (super().codes(keep, ema_update) - self.codebook_mean) * scale + self.batch_mean

    def _stored(self) -> tuple[Tensor, ...]:
        """With the statistics."""
        return (
            *super()._stored(),
            self.batch_mean,
            self.batch_variance,
            self.codebook_mean,
            self.codebook_variance,
        )

    def _unplaced(self, rows: Tensor) -> Tensor:
        scale = self._deviation("codebook") / self._deviation("batch")
        flat = (rows.flatten(1, -2) - self.batch_mean) * scale + self.codebook_mean
        return flat.view(rows.shape)

    def _deviation(self, name: str) -> Tensor:
        variance: Tensor = getattr(self, f"{name}_variance")
        return variance.clamp(min=1e-5).sqrt()

    def _average_in(self, name: str, value: Tensor, decay: float, new: Tensor) -> None:
        old: Tensor = getattr(self, name)
        old.copy_(torch.where(new, value, old * decay + value * (1 - decay)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # vector-quantize-pytorch has these two only after the first batch.
        for name in ("batch_mean", "batch_variance"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _moments(rows: Tensor, mask: Tensor | None, synced: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance, [C, 1, d] both, of those rows [C, ..., d] that mask [C, ...] counts."""
    rows = rows.flatten(1, -2)
    counted = rows.isfinite().all(dim=-1)
    if mask is not None:
        counted = counted & mask.flatten(1)
    weight = counted[..., None].to(rows.dtype)
    rows = torch.where(counted[..., None], rows, 0)
    total, number = rows.sum(dim=1, keepdim=True), weight.sum(dim=1, keepdim=True)
    if synced:
        total, number = summed(total, number)
    mean = total / number.clamp(min=1)
    squares = ((rows - mean).square() * weight).sum(dim=1, keepdim=True)
    if synced:
        (squares,) = summed(squares)
    return mean, squares / number.clamp(min=1)
