"""A sample of `make chaos`: none of its cases may end otherwise than an uninterrupted run, or in a line."""

import subprocess
import sys

from tests.conftest import ROOT
from tests.faults import IDENTICAL, NOTHING, judge
from tests.forked import Ended


def test_the_same_command_again_ends_as_if_nothing_was():
    """In a process of its own: torch can't train in the fork of one that has trained."""
    scripts = ["--script", "train_tokenizer", "--script", "train_maskgit"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--only", "kill", "--only", "damage", "--cases", "1", *scripts],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" | 1 | 1 | 1 | 0 | 0 |") + done.stdout.count(" | 0 | 0 | 1 | 0 |") == 4


def test_what_is_different_is_seen(tmp_path):
    """Otherwise nothing above means anything."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "runs").mkdir(parents=True)
        (folder / "runs" / "weights").write_bytes(b"the same")
    ended = Ended(0, "", 0)
    assert judge(ended, one, other, NOTHING) == IDENTICAL
    (one / "runs" / "weights").write_bytes(b"others")
    assert judge(ended, one, other, NOTHING).startswith("different: runs/weights")
    (one / "runs" / "more").touch()
    (other / "runs" / "less").touch()
    assert "left over: runs/less" in judge(ended, one, other, NOTHING)
    assert "missing: runs/more" in judge(ended, one, other, NOTHING)
    assert judge(Ended(2, "usage", 0), one, one, NOTHING) == "exit 2: usage"
