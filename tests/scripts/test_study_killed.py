"""Programs with workers that are killed: nobody is left behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.support import Child, wait_until


@pytest.mark.parametrize(
    "arguments",
    [
        ("scripts/study_latency.py", "--policy", "oracle", "--methods", "dual-4", "--out"),
        ("scripts/demonstrate.py", "--workers", "2", "--out"),
    ],
)
def test_no_worker_outlives_its_program(arguments: tuple[str, ...], tmp_path: Path) -> None:
    child = Child(*arguments, str(tmp_path / "out"))
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
