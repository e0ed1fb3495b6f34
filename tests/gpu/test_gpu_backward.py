"""The backward pass as an op: the tests of tests/ops, on the device."""

from test_quantize_backward import *  # noqa: F403
