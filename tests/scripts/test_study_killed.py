"""A study that is killed leaves no workers behind."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.support import Child, wait_until


def test_no_worker_outlives_a_study(tmp_path: Path) -> None:
    study = ("scripts/study_latency.py", "--policy", "oracle", "--methods", "dual-4")
    child = Child(*study, "--out", str(tmp_path / "out"))
    program = psutil.Process(child.process.pid)

    def workers() -> list[psutil.Process]:
        return [p for p in program.children() if "spawn_main" in " ".join(p.cmdline())]

    try:
        wait_until(lambda: len(workers()) == 2, "two workers", 60)
        at_work = workers()
        # Only a worker that has begun has asked to end with its program.
        wait_until(lambda: all(p.cpu_times().user > 2.0 for p in at_work), "them to work", 60)
    finally:
        child.process.kill()
        child.process.wait()
    wait_until(lambda: not any(map(alive, at_work)), "the workers to end")


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
