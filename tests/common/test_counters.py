from __future__ import annotations

import logging
import sys
import threading
from types import SimpleNamespace

import pytest

from common import counters
from common.counters import MalformedCounters
from common.wire import MalformedMessage


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 100.0
        monkeypatch.setattr(counters, "time", SimpleNamespace(monotonic=lambda: self.at))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_counts_by_stream_and_reason() -> None:
    counts = MalformedCounters()
    assert (counts.snapshot(), counts.total) == ({}, 0)
    for stream, reason in (
        ("robot", "size"),
        ("robot", "size"),
        ("robot", "topic"),
        ("camera", "size"),
    ):
        counts.add(MalformedMessage(stream, reason, "whatever"))
    assert counts.snapshot() == {"robot": {"size": 2, "topic": 1}, "camera": {"size": 1}}
    assert counts.total == 4


def test_a_snapshot_is_a_copy() -> None:
    counts = MalformedCounters()
    counts.add(MalformedMessage("robot", "size"))
    counts.snapshot()["robot"]["size"] = 99
    assert counts.snapshot() == {"robot": {"size": 1}}


def test_one_line_a_second_for_each_reason(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    counts = MalformedCounters()
    for step in range(300):  # three seconds, a hundred messages of each reason in each
        clock.at = 100.0 + step / 100
        counts.add(MalformedMessage("robot", "size", "67 bytes"))
        counts.add(MalformedMessage("robot", "topic"))
        counts.add(MalformedMessage("camera", "size"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 9
    for start in ("robot: size (67 bytes)", "robot: topic", "camera: size"):
        mine = [line for line in lines if f"{start};" in line]
        assert [line.rsplit("; ")[1] for line in mine] == ["1 so far", "101 so far", "201 so far"]
    assert counts.total == 900


def test_the_first_line_comes_at_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock.at = 0.0  # a machine that has just started
    MalformedCounters().add(MalformedMessage("robot", "size"))
    assert len(caplog.records) == 1


def test_threads_lose_no_count(caplog: pytest.LogCaptureFixture) -> None:
    counts, threads, each = MalformedCounters(), 8, 2000
    start = threading.Barrier(threads)

    def add() -> None:
        start.wait()
        for number in range(each):
            counts.add(MalformedMessage("sensor", "size" if number % 2 else "count"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=add) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    finally:
        sys.setswitchinterval(interval)
    half = threads * each // 2
    assert counts.snapshot() == {"sensor": {"size": half, "count": half}}
    assert 2 <= len(caplog.records) <= 20
