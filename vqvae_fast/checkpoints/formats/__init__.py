"""The layouts of all libraries, in the order in which they are tried."""

from vqvae_fast.checkpoints.formats import dac, embedding, encodec, mimi, rosinality, sim_vq, vqp
from vqvae_fast.checkpoints.formats.format import Format

# Where one layout contains another (a GroupedResidualVQ is made of ResidualVQs, and these of
# VectorQuantizes), the larger comes first.
FORMATS: tuple[Format, ...] = (
    mimi.FORMAT,
    encodec.FORMAT,
    dac.FORMAT,
    vqp.GROUPED,
    vqp.RESIDUAL,
    vqp.SINGLE,
    sim_vq.RESIDUAL,
    sim_vq.SINGLE,
    rosinality.FORMAT,
    embedding.FORMAT,
)

__all__ = ["FORMATS", "Format"]
