"""The kernels that there are to test on this machine."""

from vqvae_fast import _native

# Best first; empty without the extension.
INSTRUCTION_SETS: list[str] = (
    _native.extension.available_cpu_isas() if _native.extension is not None else []
)
