"""The quantizer of the reference VQ-VAE."""
