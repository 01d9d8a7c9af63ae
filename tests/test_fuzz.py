"""A sample of `make fuzz`: none of its cases may end in anything but a result or a line."""

import pytest

from tests.fuzz import fuzz
from tests.fuzzed import SUBJECTS

CASES = {"configs": 100}  # of the others, some


@pytest.mark.parametrize("name", SUBJECTS)
def test_odd_input_is_read_or_refused_in_a_line(name):
    _, failures = fuzz([name], CASES.get(name, 20))

    assert not failures
