"""Values that break searches, NaN and infinity: the tests of tests/ops, on the device."""

from test_search_adversarial import *  # noqa: F403
