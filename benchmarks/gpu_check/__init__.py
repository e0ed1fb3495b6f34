"""Static checks of the Triton kernels, compiled for GPUs that need not be present."""
