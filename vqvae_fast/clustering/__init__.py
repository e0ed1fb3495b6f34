"""k-means on the exact search: an estimator as scikit-learn has it, and books for residual VQ."""

from vqvae_fast.clustering.estimator import KMeans, NotFittedError
from vqvae_fast.clustering.residual import ResidualClustering, residual_kmeans

__all__ = ["KMeans", "NotFittedError", "ResidualClustering", "residual_kmeans"]
