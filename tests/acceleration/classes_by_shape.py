"""Quantizers as image models have them in their repositories, which cannot be installed.

They have the attributes, arguments, results and mathematics of the classes that are copied from one
repository to the next, and nothing more.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional


def distances(rows: Tensor, codes: Tensor) -> Tensor:
    """[N, D], [K, D] -> [N, K], by the square's three terms, as all of these classes have it."""
    lengths = rows.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
    return lengths - 2 * rows @ codes.t()


class Table(nn.Module):
    """What most of them begin with."""

    def __init__(self, n_e: int, e_dim: int, beta: float):
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)

    def losses(self, z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The commitment loss and the codebook loss."""
        return (chosen.detach() - z).square().mean(), (chosen - z.detach()).square().mean()


class WithOneHot(Table):
    """taming-transformers' first quantizer."""

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        z = z.permute(0, 2, 3, 1).contiguous()
        indices = distances(z.view(-1, self.e_dim), self.embedding.weight).argmin(dim=1)
        one_hot = nn_functional.one_hot(indices, self.n_e).to(z)
        chosen = (one_hot @ self.embedding.weight).view(z.shape)
        commitment, codebook = self.losses(z, chosen)
        usage = one_hot.mean(dim=0)
        perplexity = (-(usage * (usage + 1e-10).log()).sum()).exp()
        quantized = (z + (chosen - z).detach()).permute(0, 3, 1, 2).contiguous()
        loss = commitment + self.beta * codebook
        return quantized, loss, perplexity, one_hot, indices[:, None]

    def forward(self, z):
        quantized, loss, *others = self.parts(z)
        return quantized, loss, tuple(others)


class LossFirst(WithOneHot):
    """The quantizer of the first VQ-VAE in PyTorch."""

    def forward(self, z):
        quantized, loss, *others = self.parts(z)
        return loss, quantized, *others


class Remapped(Table):
    """What later quantizers have in common: whose term beta weighs, and other indices."""

    def __init__(self, n_e, e_dim, beta, used=None, sane_index_shape=False, legacy=True):
        super().__init__(n_e, e_dim, beta)
        self.legacy, self.sane_index_shape = legacy, sane_index_shape
        self.remap = None if used is None else "a file"
        if used is not None:
            self.register_buffer("used", used)

    def remap_to_used(self, indices):
        assert indices.dim() == 2
        found = (indices[:, :, None] == self.used).long()
        unknown = found.sum(dim=2) == 0
        new = found.argmax(dim=2)
        new[unknown] = torch.randint(0, len(self.used), new[unknown].shape)
        return new

    def parts(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1).contiguous()
        indices = distances(z.view(-1, self.e_dim), codes).argmin(dim=1)
        chosen = nn_functional.embedding(indices, codes).view(z.shape)
        commitment, codebook = self.losses(z, chosen)
        if self.legacy:
            loss = commitment + self.beta * codebook
        else:
            loss = self.beta * commitment + codebook
        quantized = (z + (chosen - z).detach()).permute(0, 3, 1, 2).contiguous()
        if self.remap is not None:
            indices = self.remap_to_used(indices.view(len(z), -1)).view(-1, 1)
        if self.sane_index_shape:
            indices = indices.reshape(z.shape[:3])
        return quantized, loss, indices


class Second(Remapped):
    """taming-transformers' second quantizer, which latent diffusion uses."""

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        assert temp in (None, 1.0)
        assert not rescale_logits
        assert not return_logits
        quantized, loss, indices = self.parts(z, self.embedding.weight)
        return quantized, loss, (None, None, indices)


class LossBreakdown(NamedTuple):
    per_sample_entropy: Tensor
    codebook_entropy: Tensor
    commitment: Tensor
    avg_probs: Tensor


class SimVQ(Remapped):
    """SimVQ's quantizer: a linear layer of a table that does not learn."""

    def __init__(self, n_e, e_dim, beta=0.25, bias=True, **options):
        super().__init__(n_e, e_dim, beta, **options)
        self.embedding.requires_grad_(False)
        self.embedding_proj = nn.Linear(e_dim, e_dim, bias=bias)

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        assert temp in (None, 1.0)
        quantized, loss, indices = self.parts(z, self.embedding_proj(self.embedding.weight))
        zero = torch.tensor(0.0)
        return (quantized, zero, indices), LossBreakdown(zero, zero, loss, zero)


class LlamaGen(Table):
    """LlamaGen's quantizer."""

    def __init__(self, n_e, e_dim, beta, entropy_loss_ratio, l2_norm, show_usage, window=256):
        super().__init__(n_e, e_dim, beta)
        self.entropy_loss_ratio, self.l2_norm = entropy_loss_ratio, l2_norm
        self.show_usage = show_usage
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(window))

    def forward(self, z):
        z = z.permute(0, 2, 3, 1).contiguous()
        codes = self.embedding.weight
        if self.l2_norm:
            z, codes = (nn_functional.normalize(part, dim=-1) for part in (z, codes))
        far = distances(z.view(-1, self.e_dim), codes)
        indices = far.argmin(dim=1)
        chosen = codes[indices].view(z.shape)
        usage, terms = 0, (None, None, None)
        if self.training and self.show_usage:
            number = len(indices)
            self.codebook_used[:-number] = self.codebook_used[number:].clone()
            self.codebook_used[-number:] = indices
            usage = len(self.codebook_used.unique()) / self.n_e
        if self.training:
            commitment, codebook = self.losses(z, chosen)
            terms = (
                codebook,
                self.beta * commitment,
                self.entropy_loss_ratio * self.entropy(-far / 0.01),
            )
        quantized = (z + (chosen - z).detach()).permute(0, 3, 1, 2)
        return quantized, (*terms, usage), (None, None, indices)

    def entropy(self, scores):
        shares = scores.softmax(dim=1)
        usage = shares.mean(dim=0)
        of_vectors = -(shares * scores.log_softmax(dim=1)).sum(dim=1).mean()
        return of_vectors + (usage * (usage + 1e-5).log()).sum()


class Quantize(nn.Module):
    """The quantizer of VQ-VAE-2 in PyTorch, whose codes are moving averages."""

    def __init__(self, dim, n_embed, decay=0.9, eps=1e-5):
        super().__init__()
        self.dim, self.n_embed, self.decay, self.eps = dim, n_embed, decay, eps
        codes = torch.randn(dim, n_embed)
        self.register_buffer("embed", codes)
        self.register_buffer("cluster_size", torch.ones(n_embed))
        self.register_buffer("embed_avg", codes.clone())

    def forward(self, input):
        rows = input.reshape(-1, self.dim)
        found = distances(rows, self.embed.t()).argmin(dim=1)
        indices = found.view(input.shape[:-1])
        chosen = self.embed_code(indices)
        if self.training:
            one_hot = nn_functional.one_hot(found, self.n_embed).to(rows)
            new = 1 - self.decay
            self.cluster_size.data.mul_(self.decay).add_(one_hot.sum(dim=0), alpha=new)
            self.embed_avg.data.mul_(self.decay).add_(rows.detach().t() @ one_hot, alpha=new)
            total = self.cluster_size.sum()
            size = (self.cluster_size + self.eps) / (total + self.n_embed * self.eps) * total
            self.embed.data.copy_(self.embed_avg / size)
        loss = (chosen.detach() - input).square().mean()
        return input + (chosen - input).detach(), loss, indices

    def embed_code(self, indices):
        return nn_functional.embedding(indices, self.embed.t())
