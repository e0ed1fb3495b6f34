"""pytest turns warnings into errors here; a package without its kernels is slow, not an error."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("default")
    import vqvae_fast  # noqa: F401
