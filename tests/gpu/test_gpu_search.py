"""The contract of the search: the tests of tests/ops, on the device."""

from test_search_bits import test_a_row_has_the_same_answer_in_any_company  # noqa: F401
from test_search_contract import *  # noqa: F403
