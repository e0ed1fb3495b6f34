"""Every autograd Function of the package.

Each has two formulas of its gradient: a fused op, and differentiable functions for a backward pass
that autograd records (:mod:`vqvae_fast.autograd.backward_pass`).
"""
