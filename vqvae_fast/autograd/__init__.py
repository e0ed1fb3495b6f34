"""Every autograd Function of the package.

Each computes its gradient in two ways: by a fused op, and by differentiable functions for a
backward pass that autograd records (:mod:`vqvae_fast.autograd.backward_pass`).
"""
