"""The list of deliberate faults fits the sources (``mutations.py`` itself tries the faults)."""

import pytest
from mutations import FAULTS, ROOT, Fault, source_of


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_line_of_a_fault_exists_once(fault: Fault):
    assert source_of(fault, ROOT).is_file()
    assert fault.replacement != fault.text
