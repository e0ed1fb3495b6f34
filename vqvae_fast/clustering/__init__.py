"""k-means on the exact search: an estimator as scikit-learn has it, and books for residual VQ."""

from vqvae_fast.clustering.estimator import KMeans

__all__ = ["KMeans"]
