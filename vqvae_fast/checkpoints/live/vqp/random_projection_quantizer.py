"""The arguments of a live RandomProjectionQuantizer."""

from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import attribute, require_equal, unreadable
from vqvae_fast.checkpoints.live.vqp.vector_quantize import vector_quantize

# Arguments of its VectorQuantize that follow from its own.
_GIVEN = ("dim", "heads", "codebook_dim", "use_cosine_sim", "separate_codebook_per_head")


def random_projection_quantizer(module: nn.Module) -> dict[str, Any]:
    """The arguments of a RandomProjectionQuantizer.

    Raises:
        ValueError: names the setting that ours cannot take over.
    """
    books, dim, codebook_dim = attribute(module, "rand_projs").shape
    require_equal("num_codebooks", [attribute(module, "num_codebooks"), books], "projections")
    arguments = vector_quantize(attribute(module, "vq"))
    inner = {name: arguments.pop(name) for name in _GIVEN}
    width = codebook_dim * books
    wanted = dict(zip(_GIVEN, (width, books, width, True, True), strict=True))
    for name, value in inner.items():
        require_equal(name, [wanted[name], value], "parts")
    return {
        **arguments,
        "dim": dim,
        "codebook_dim": codebook_dim,
        "num_codebooks": books,
        "norm": _normalises(attribute(module, "norm"), dim),
    }


def _normalises(norm: nn.Module, dim: int) -> bool:
    if type(norm) is nn.Identity:
        return False
    usual = nn.LayerNorm(dim, elementwise_affine=False)
    if type(norm) is not nn.LayerNorm or repr(norm) != repr(usual):
        raise unreadable("norm", f"the constructor does not make such a module: {norm}")
    return True
