"""Gradients of the public function against the readable formula: the tests of tests/ops."""

from test_quantize_gradient import *  # noqa: F403

# Of a CPU.
del test_gradients_have_the_same_bits_on_any_number_of_threads  # noqa: F821
