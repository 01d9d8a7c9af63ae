"""A sample of `make fuzz`: none of its cases may end in anything but a result or a line."""

import subprocess
import sys

from tests.conftest import ROOT
from tests.fuzzed import SUBJECTS


def test_odd_input_is_read_or_refused_in_a_line():
    """In a process of its own, whose forks are small."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--cases", "25"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in SUBJECTS:
        assert f"| {name} | 25 |" in done.stdout
