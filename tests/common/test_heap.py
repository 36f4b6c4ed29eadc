"""Freed memory is used again: handling pictures costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

ROUNDS = """
import resource, sys
from common.heap import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("this system cannot")
def message():
    return [b"x" * 691_200 for _ in range(5)]
for _ in range(20):
    message()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    message()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


def faults(how: str) -> float:
    """Page faults a message, in a process of its own."""
    command = [sys.executable, "-c", ROUNDS, how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_messages_cost_no_page_faults() -> None:
    assert faults("leave") > 100  # 845 pages a message: what it is for
    assert faults("keep") < 5
