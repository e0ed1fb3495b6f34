"""A codebook that stays packed, because its owner says that it does not change."""

from typing import Any

import torch
from torch import Tensor

_FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class PackedCodebook:
    """A codebook in the form that the search reads; :func:`vqvae_fast.pack` makes it.

    It holds a copy of the codes, so that later changes of the original have no effect on it, and
    the packed form of that copy. It has no gradient and does not change. ``copy.deepcopy``,
    ``pickle`` and ``torch.save`` store the codes and pack them again, for the processor on which
    they arrive. ``torch.load`` reads it with ``weights_only=True``, too, once this package is
    imported.

    Attributes:
        codebook: the codes, [K, D] or [H, K, D], contiguous. Do not write to them: the next search
            would raise a RuntimeError if torch counts the write (except in a function that
            ``torch.compile`` has traced).
        packed: uint8 [B], or [H, B], which only the search of this device reads; B = 0 if it has no
            packed form.
    """

    __slots__ = ("_codebook", "_packed", "_version")

    def __init__(self, codebook: Tensor, packed: Tensor) -> None:
        self._codebook = codebook
        self._packed = packed
        self._version = codebook._version

    @property
    def codebook(self) -> Tensor:
        """The codes."""
        return self._codebook

    @property
    def packed(self) -> Tensor:
        """Their packed form."""
        return self._packed

    @property
    def shape(self) -> torch.Size:
        """The codebook's shape, [K, D] or [H, K, D]."""
        return self.codebook.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the codes; the vectors must have it too."""
        return self.codebook.dtype

    @property
    def device(self) -> torch.device:
        """The device of the codes; the vectors must be on it."""
        return self.codebook.device

    @property
    def nbytes(self) -> int:
        """The memory that this object holds for the copy of the codes and the packed form."""
        return self.codebook.nbytes + self.packed.nbytes

    def check_unchanged(self) -> None:
        """Raise RuntimeError if the codes were written to since they were packed.

        A traced function does not check, because its graph cannot hold the number of changes.
        """
        if torch.compiler.is_compiling():
            return
        if self.codebook._version != self._version:
            raise RuntimeError(
                "the codes of this packed codebook were changed in place, so its packed form is "
                "out of date: pack the new codes with vqvae_fast.pack"
            )

    def __len__(self) -> int:
        """The first size, K or H."""
        return len(self.codebook)

    def __reduce__(self) -> tuple[Any, ...]:
        """Store the codes alone, because another processor may pack them in another way.

        Raises:
            RuntimeError: the codes were changed since they were packed, as in a search.
        """
        self.check_unchanged()
        return pack, (self.codebook,)

    def __repr__(self) -> str:
        """The shape, the dtype, the device and the memory."""
        return (
            f"PackedCodebook(shape={list(self.shape)}, dtype={self.dtype}, device={self.device}, "
            f"nbytes={self.nbytes})"
        )


def pack(codebook: Tensor) -> PackedCodebook:
    """Pack a codebook that will not change, so that searches need not pack it at each call.

    :func:`vqvae_fast.nearest_code`, :func:`vqvae_fast.quantize` and
    :func:`vqvae_fast.residual_nearest_code` take the result in the codebook's place and return the
    same bits as for the codebook itself. For a few vectors on a CPU that is several times as fast;
    on a GPU it saves one of a search's launches.

    Args:
        codebook: [K, D]; [H, K, D] for H separate books, or for the stages of residual
            quantization. float32, bfloat16, float16 or float64; any strides.

    Returns:
        A :class:`PackedCodebook`. It copies the codes and adds their packed form: on a CPU with
        an integer filter (AVX2, AVX-512) a quarter of the size in float32 for long codes and more
        for short ones; on others, and for float64, as much again as in float32 or float64. The
        Triton kernels' form takes half of the size in float32, of K and D padded; for float64 and
        for more than 1024 books, and on other devices, there is the copy alone.

    Raises:
        TypeError: codebook is no tensor or has no float dtype.
        ValueError: codebook has another shape, no code or dimension, or no numbers; or it requires
            a gradient, which no packed codebook has: pass ``codebook.detach()`` or call this under
            ``torch.no_grad()``.
        RuntimeError: the call is traced by ``torch.compile`` or ``torch.export``. Pack beforehand;
            searches in the result can be traced.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("vqvae_fast.pack cannot be traced: call it before the traced function")
    if not isinstance(codebook, Tensor):
        raise TypeError(f"codebook must be a torch.Tensor, got {type(codebook).__name__}")
    if codebook.dtype not in _FLOAT_DTYPES:
        known = ", ".join(map(str, _FLOAT_DTYPES))
        raise TypeError(f"codebook must be one of {known}, got {codebook.dtype}")
    if codebook.layout != torch.strided or codebook.is_meta:
        what = "the meta device" if codebook.is_meta else str(codebook.layout)
        raise ValueError(f"codebook must be a dense tensor that holds numbers, got one of {what}")
    if codebook.dim() not in (2, 3) or 0 in codebook.shape:
        raise ValueError(
            "codebook must be [K, D] or [H, K, D] with at least one code and one dimension, "
            f"got {list(codebook.shape)}"
        )
    if codebook.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "codebook requires a gradient, but a packed codebook has none: "
            "pass codebook.detach(), or call pack under torch.no_grad()"
        )
    # The copy counts its changes, which a tensor of inference mode does not.
    with torch.inference_mode(False), torch.no_grad():
        codes = codebook.detach().clone(memory_format=torch.contiguous_format)
        return PackedCodebook(codes, torch.ops.vqvae_fast.pack_codebook(codes))


# torch.load(weights_only=True) may call it, because it reads nothing but the codes it is given.
torch.serialization.add_safe_globals([pack])
