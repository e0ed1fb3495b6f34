"""What `make test-aarch64` says it has tried, and that it cannot pass by trying nothing."""

import pytest

from tools.aarch64 import TESTS, left_out, summary
from tools.wheel import ROOT

REPORT = '<testsuites><testsuite tests="{tests}" skipped="{skipped}" /></testsuites>'


def test_tests_that_passed_are_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT.format(tests=9, skipped=2))
    assert summary(tmp_path / "report.xml").startswith("7 tests passed on Arm, 2 were skipped")


@pytest.mark.parametrize("number", [0, 3])
def test_a_run_in_which_nothing_passed_fails(tmp_path, number):
    (tmp_path / "report.xml").write_text(REPORT.format(tests=number, skipped=number))
    with pytest.raises(SystemExit, match=rf"No test ran on Arm: {number} were skipped"):
        summary(tmp_path / "report.xml")


def test_what_is_not_tried_is_named():
    tried = [f"tests/ops/test_{name}.py" for name in TESTS]
    assert all((ROOT / name).exists() for name in tried)
    assert "tests/ops/test_attack.py" in left_out(tried)
    assert not set(tried) & set(left_out(tried))
