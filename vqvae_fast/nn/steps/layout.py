"""The layout of vectors in a tensor: tokens, feature maps, heads."""

from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast.nn.steps.checks import check_floats


class Places(NamedTuple):
    """The sizes of the dimensions that :func:`to_tokens` has flattened; empty for a vector."""

    spatial: torch.Size
    channel_first: bool


def to_tokens(x: Tensor, channel_first: bool) -> tuple[Tensor, Places]:
    """View x [B, ..., D], or [B, D, ...] with ``channel_first``, or [B, D], as [B, N, D]."""
    if x.dim() == 2:
        return x[:, None], Places(torch.Size(), False)
    if channel_first:
        return x.flatten(2).transpose(1, 2), Places(x.shape[2:], True)
    return x.flatten(1, -2), Places(x.shape[1:-1], False)


def vectors_to_places(tokens: Tensor, places: Places) -> Tensor:
    """Undo :func:`to_tokens` for tokens [B, N, ..., D]; extra dimensions come last but D."""
    tokens = to_places(tokens, places)
    return tokens.movedim(-1, 1) if places.channel_first else tokens


def to_places(tokens: Tensor, places: Places) -> Tensor:
    """Map tokens [B, N, ...], such as indices, to [B, spatial, ...]."""
    return tokens.unflatten(1, places.spatial) if places.spatial else tokens.squeeze(1)


def losses_to_places(losses: Tensor, places: Places) -> Tensor:
    """Apply :func:`to_places` to a loss of each token, [B, N, ...]; return a 0-d loss unchanged."""
    return to_places(losses, places) if losses.dim() > 0 else losses


def with_padding(
    mask: Tensor, padding: Tensor, vectors: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Results of tokens, with what those get that are padding: their vector there, and -1.

    Args:
        mask: bool [B, N], False for padding.
        padding: [B, N, D].
        vectors: [B, N, ..., D].
        indices: [B, N, ...].
    """
    for _ in range(vectors.dim() - 3):  # topk
        padding = padding[:, :, None]
    of_vectors = mask.view(*mask.shape, *[1] * (vectors.dim() - 2))
    of_indices = mask.view(*mask.shape, *[1] * (indices.dim() - 2))
    return torch.where(of_vectors, vectors, padding), torch.where(of_indices, indices, -1)


class Heads(NamedTuple):
    """Cuts the dimensions of a token into heads.

    Attributes:
        number: the number of heads.
        separate: each has a book of its own.
    """

    number: int
    separate: bool

    @property
    def books(self) -> int:
        """Number of codebooks, C."""
        return self.number if self.separate else 1

    def split(self, tokens: Tensor) -> Tensor:
        """Map [B, N, heads * d] to [C, ..., N, d]; ... is B, or B and heads that share a book."""
        if self.number == 1:
            return tokens[None]
        return self.split_indices(tokens.unflatten(-1, (self.number, -1)))

    def split_indices(self, tokens: Tensor) -> Tensor:
        """Map [B, N, heads, ...], or [B, N] if there is one head, to [C, ..., N, ...]."""
        if self.number == 1:
            return tokens[None]
        return tokens.movedim(2, 0) if self.separate else tokens.movedim(2, 1)[None]

    def merge(self, rows: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        return rows[0] if self.number == 1 else self.merge_indices(rows).flatten(-2)

    def merge_indices(self, rows: Tensor) -> Tensor:
        """Undo :meth:`split_indices`."""
        if self.number == 1:
            return rows[0]
        return rows.movedim(0, 2) if self.separate else rows[0].movedim(1, 2)

    def repeat(self, mask: Tensor) -> Tensor:
        """Map mask [B, N] to [C, ..., N], the same for every head."""
        if self.number == 1:
            return mask[None]
        return self.split_indices(mask[..., None].expand(*mask.shape, self.number))


class Layout(NamedTuple):
    """The layout of a quantizer's input.

    Attributes:
        dim: D, the length of a vector.
        channel_first: x is [B, D, ...], otherwise [B, ..., D].
        fmap: the required number of dimensions in the place of "..."; None allows any.
        many_heads: indices have one more dimension, for the heads.
    """

    dim: int
    channel_first: bool
    fmap: int | None
    many_heads: bool

    def tokens(self, x: Tensor) -> tuple[Tensor, Places]:
        """Map x to tokens [B, N, D] and their places.

        Raises:
            TypeError: x is not a tensor of floats.
            ValueError: its shape does not fit.
        """
        check_floats("x", x)
        axis = 1 if self.channel_first and x.dim() > 2 else -1
        fits = x.dim() >= 2 if self.fmap is None else x.dim() == self.fmap + 2
        if not fits or x.shape[axis] != self.dim:
            raise ValueError(f"x must be {self}, got {list(x.shape)}")
        return to_tokens(x, self.channel_first)

    def index_tokens(self, indices: Tensor) -> tuple[Tensor, Places]:
        """Map indices, as a call returns them, to [B, N] or [B, N, heads] and their places."""
        indices = torch.as_tensor(indices)
        if indices.dim() < 1 + self.many_heads:
            raise ValueError(f"indices must be [B, ...], got {list(indices.shape)}")
        spatial = indices.shape[1 : indices.dim() - self.many_heads]
        heads = indices.shape[1 + len(spatial) :]
        places = Places(spatial, self.channel_first and len(spatial) > 0)
        return indices.reshape(len(indices), spatial.numel(), *heads), places

    def right_indices(self, indices: Tensor, tokens: Tensor, heads: int, num_codes: int) -> Tensor:
        """Indices that are right, as [B, N], or [B, N, heads] if there are several.

        Raises:
            ValueError: they are not such indices of tokens [B, N, D], or out of range.
        """
        wanted = [*tokens.shape[:2]] + ([heads] if heads > 1 else [])
        right, _ = self.index_tokens(indices)
        if right.dtype != torch.int64 or list(right.shape) != wanted:
            got = f"{right.dtype} {list(right.shape)}"
            raise ValueError(f"indices must be int64 {wanted} (B, tokens, heads), got {got}")
        # Elsewhere one would have to wait for the device; there cross_entropy notices, later.
        known = right.device.type == "cpu" and not torch.compiler.is_compiling()
        if known and ((right < -1) | (right >= num_codes)).any():
            raise ValueError(f"indices must be from -1 to K - 1 = {num_codes - 1}")
        return right

    def mask(
        self, tokens: Tensor, places: Places, mask: Tensor | None, lens: Tensor | None
    ) -> Tensor | None:
        """Return bool [B, N] from a mask of x's shape without D, or from lens [B], or None.

        Raises:
            ValueError: both are given, or a shape does not fit.
        """
        batch, count = tokens.shape[:2]
        if mask is not None and lens is not None:
            raise ValueError("mask and lens exclude each other")
        if lens is not None:
            if lens.shape != (batch,):
                raise ValueError(f"lens must be [B={batch}], got {list(lens.shape)}")
            return torch.arange(count, device=tokens.device) < lens[:, None]
        if mask is None:
            return None
        if mask.dtype != torch.bool or mask.shape != (batch, *places.spatial):
            wanted = [batch, *places.spatial]
            raise ValueError(f"mask must be bool {wanted}, got {mask.dtype} {list(mask.shape)}")
        return mask.reshape(batch, count)

    def __str__(self) -> str:
        places = {None: "...", 2: "height, width", 3: "depth, height, width"}[self.fmap]
        if self.fmap is not None:
            return f"[B, D={self.dim}, {places}]"
        full = f"D={self.dim}, ..." if self.channel_first else f"..., D={self.dim}"
        return f"[B, {full}] or [B, D={self.dim}]"
