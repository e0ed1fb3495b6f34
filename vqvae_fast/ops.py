"""What the dispatcher knows: the schemas, the fakes and the fallback of torch.ops.vqvae_fast.*.

The compiled extension registers faster kernels for the CPU under the same names when it loads.
Everything else is served by :mod:`vqvae_fast.reference`. Inputs are validated by
:mod:`vqvae_fast.functional`; the ops themselves only refuse what would be unsafe.
"""

import torch
from torch import Tensor

from vqvae_fast import _native, reference  # noqa: F401  (_native registers the CPU kernels)

_library = torch.library.Library("vqvae_fast", "FRAGMENT")

_library.define("nearest_code(Tensor z, Tensor codebook) -> (Tensor indices, Tensor distances)")
_library.define(
    "quantize(Tensor z, Tensor codebook) -> (Tensor quantized, Tensor indices, Tensor distances)"
)
_library.define(
    "segment_sum(Tensor src, Tensor indices, SymInt num_segments) -> (Tensor sums, Tensor counts)"
)

for _name in ("nearest_code", "quantize", "segment_sum"):
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")


@torch.library.register_fake("vqvae_fast::nearest_code", lib=_library)
def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    shape = z.shape[:-1]
    distances = z.new_empty(shape, dtype=reference.distance_dtype(z.dtype))
    return z.new_empty(shape, dtype=torch.int64), distances


@torch.library.register_fake("vqvae_fast::quantize", lib=_library)
def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = z.shape[:-1]
    distances = z.new_empty(shape, dtype=reference.distance_dtype(z.dtype))
    return torch.empty_like(z), z.new_empty(shape, dtype=torch.int64), distances


@torch.library.register_fake("vqvae_fast::segment_sum", lib=_library)
def _(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    dtype = reference.distance_dtype(src.dtype)
    sums = src.new_empty((num_segments, src.shape[-1]), dtype=dtype)
    return sums, src.new_empty((num_segments,), dtype=dtype)
