"""``python -m vqvae_fast.cli``."""

from vqvae_fast.cli import main

main()
