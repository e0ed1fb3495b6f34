"""Sampling, top-k and entropies, which need a logit for every pair of a vector and a code.

The logits are vector-quantize-pytorch's: minus the Euclidean distance, not squared, or the cosine
similarity. The N x K of them are never in memory at once: rows are taken in chunks, and a chunk
that has a gradient is computed again in the backward pass. The time is that of the plain formula.

Codes are [C, K, d], or [C, ..., K, d] where each row has its own.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# The largest temporary has this many elements: 16 Mi float32 logits are 64 MiB. The C library keeps
# freed blocks below 32 MiB, and with such chunks more than N x K numbers stayed allocated.
_CHUNK_ELEMENTS = 1 << 24


def pair_logits(x: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """The logit of each pair: x [n, d], codes [K, d] or [n, K, d] -> [n, K].

    For ``cosine`` both have unit length.
    """
    if codes.dim() == 3:
        if cosine:
            return (codes @ x[..., None])[..., 0]
        return -functional.pairwise_distance(x[:, None], codes)
    product = x @ codes.T
    if cosine:
        return product
    squares = x.square().sum(dim=-1)[:, None] + codes.square().sum(dim=-1)
    return -(squares - 2 * product).clamp(min=1e-8).sqrt()


@torch.no_grad()
def choose(
    x: Tensor, codes: Tensor, cosine: bool, *, temperature: float = 0.0, k: int | None = None
) -> Tensor:
    """Choose the best code of every row, or the k best, best first.

    Args:
        x: [C, ..., d].
        codes: [C, K, d] or [C, ..., K, d].
        cosine: the logits are cosine similarities, otherwise negative distances.
        temperature: above 0, codes are drawn by softmax(logits / temperature), with Gumbel noise
            (arXiv 1611.01144, eq. 1).
        k: the number of codes. If None, choose one code and add no dimension.

    Returns:
        indices, [C, ...] or [C, ..., k].
    """

    def best(rows: Tensor, book: Tensor) -> Tensor:
        scores = pair_logits(rows, book, cosine)
        if temperature > 0:
            noise = -_log(-_log(torch.rand_like(scores)))
            scores = scores / temperature + noise
        return scores.argmax(dim=-1) if k is None else scores.topk(k, dim=-1).indices

    return _of_rows(x, codes, best)


def soft_codes(x: Tensor, codes: Tensor, cosine: bool, temperature: float) -> Tensor:
    """Return the mean of all codes weighted by softmax(logits / temperature), [C, ..., d].

    The gradient is that of the weights alone: the averaged codes count as constants.
    """

    def mix(rows: Tensor, book: Tensor) -> Tensor:
        share = (pair_logits(rows, book, cosine) / temperature).softmax(dim=-1)
        mixed = book.detach()
        return share @ mixed if book.dim() == 2 else (share[:, None] @ mixed)[:, 0]

    return _of_rows(x, codes, lambda rows, book: _again(mix, rows, book))


def cross_entropy(x: Tensor, codes: Tensor, cosine: bool, targets: Tensor) -> Tensor:
    """Return the mean of -log softmax(logits)[target] over targets [C, ...] that are not -1; 0-d.

    If all are -1, as in a stage that quantize dropout has left out, the result is 0 and not NaN.
    """

    def lost(rows: Tensor, book: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(
            pair_logits(rows, book, cosine), wanted[:, 0], ignore_index=-1, reduction="none"
        )

    wanted = targets[..., None]
    losses = _of_rows(x, codes, lambda *parts: _again(lost, *parts), wanted)
    return losses.sum() / (targets != -1).sum().clamp(min=1)


def negative_entropy(
    x: Tensor, codes: Tensor, cosine: bool, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Return the negative entropy of the codes' probabilities, averaged over the batch; 0-d.

    x: [C, ..., N, d]. The probabilities are softmax(logits * temperature), averaged over all
    dimensions but N; the entropies are averaged over N. Only rows that counted [C, ..., N] marks
    take part, and only positions that have such rows.
    """
    own = codes.dim() > 3
    counted = x.new_ones(x.shape[:-1]) if counted is None else counted.to(x.dtype)
    rows_of = counted.flatten(0, -2).sum(dim=0)

    def entropies(rows: Tensor, books: Tensor, weight: Tensor, number: Tensor) -> Tensor:
        shares = [
            (
                pair_logits(part.flatten(0, -2), book.flatten(0, -3) if own else book, cosine)
                * temperature
            )
            .softmax(dim=-1)
            .mul(some.reshape(-1, 1))
            .unflatten(0, (-1, rows.shape[-2]))
            .sum(dim=0)
            for part, book, some in zip(rows, books, weight, strict=True)
        ]
        share = torch.stack(shares).sum(dim=0) / number.clamp(min=1)[:, None]
        return (share * _log(share, 1e-5)).sum()

    size = _chunk(codes.shape[-2] * x.shape[:-2].numel())
    rows, weights = x.split(size, dim=-2), counted.split(size, dim=-1)
    books = codes.split(size, dim=-3) if own else (codes,) * len(rows)
    parts = zip(rows, books, weights, rows_of.split(size), strict=True)
    total = torch.stack([_again(entropies, *part) for part in parts]).sum()
    return total / (rows_of > 0).sum().clamp(min=1)


def _log(x: Tensor, eps: float = 1e-20) -> Tensor:
    return x.clamp(min=eps).log()


def _chunk(numbers_per_row: int) -> int:
    return max(1, _CHUNK_ELEMENTS // max(1, numbers_per_row))


def _again(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Calls ``function``, and again in the backward pass instead of saving what that needs."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result


def _of_rows(x: Tensor, codes: Tensor, function: Callable[..., Tensor], *more: Tensor) -> Tensor:
    """Applies ``function(rows [n, d], codes, *more)`` to chunks of x [C, ..., d].

    The result is [C, ..., *], where the function adds the last dimensions. The rows of every book
    are taken in order, so that random numbers are drawn in a fixed order.
    """
    own = codes.dim() > 3

    def parts(book: Tensor, *tensors: Tensor) -> Iterator[Tensor]:
        size = _chunk(book.shape[-2] * (book.shape[-1] if own else 1))
        split = [tensor.flatten(0, -2).split(size) for tensor in tensors]
        books = book.flatten(0, -3).split(size) if own else [book] * len(split[0])
        for rows, some_codes, *others in zip(split[0], books, *split[1:], strict=True):
            yield function(rows, some_codes, *others)

    books = [torch.cat(list(parts(*each))) for each in zip(codes, x, *more, strict=True)]
    return torch.stack([book.unflatten(0, x.shape[1:-1]) for book in books])
