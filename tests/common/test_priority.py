"""Who runs before whom; in a program of its own, since it changes the whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAM = """
import json, os, sys, threading, time, zmq
from common.priority import fast_loop_first, slow_half_behind, this_process_first
context = zmq.Context()
context.socket(zmq.PULL).close()  # ZeroMQ starts its threads with the first socket
def of_zmq():
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            if open(f"/proc/self/task/{task}/comm").read().startswith("ZMQbg"):
                found.append(int(task))
        except OSError:
            pass  # a thread that has just ended
    return found
# Each sets its own priority once more before it takes its name.
while len(of_zmq()) < 2:
    time.sleep(0.001)
end, before = threading.Event(), threading.Thread(target=lambda: end.wait(), daemon=True)
before.start()
first, seen = this_process_first(), {}
def look(name, prepare):
    prepare()
    seen[name] = [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority]
for name, prepare in (("other", int), ("fast", fast_loop_first), ("slow", slow_half_behind)):
    thread = threading.Thread(target=look, args=(name, prepare))
    thread.start()
    thread.join()
seen["before"] = [
    os.sched_getscheduler(before.native_id), os.sched_getparam(before.native_id).sched_priority
]
zmq_policies = [os.sched_getscheduler(task) for task in of_zmq()]
end.set()
print(json.dumps({"first": first, "seen": seen, "zmq": zmq_policies}))
"""


def look() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _may_be_real_time() -> bool:
    if not hasattr(os, "sched_setscheduler") or (os.cpu_count() or 1) < 2:
        return False
    probe = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not _may_be_real_time(), reason="no permission for real time here")
def test_the_fast_loop_is_before_all_and_whoever_takes_the_lock_before_other_programs() -> None:
    found = look()
    assert found["first"] is True
    seen = found["seen"]
    assert isinstance(seen, dict)
    assert {name: policy for name, (policy, _) in seen.items()} == {
        "before": os.SCHED_FIFO,
        "other": os.SCHED_FIFO,
        "fast": os.SCHED_FIFO,
        "slow": os.SCHED_OTHER,
    }
    assert seen["fast"][1] > seen["other"][1] == seen["before"][1]
    assert found["zmq"] == [os.SCHED_FIFO] * 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become nobody")
def test_without_permission_nothing_changes_and_nothing_fails() -> None:
    # Given up once everything is imported, which may lie where nobody may read.
    program = PROGRAM.replace("context = ", "os.setuid(65534)\ncontext = ", 1)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first"] is False
    assert {policy for policy, _ in found["seen"].values()} == {os.SCHED_OTHER}
