"""The ring against a plain list, and under a writer that does not stop."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ring import SampleRing

ANY_BATCHES = st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=25)
BATCHES = (1, 10, 15)
WRAP = 1 << 20  # numbers start again here: ten times as much is still exact in float32


def batch(first: int, count: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that carry their own number in every channel."""
    numbers = np.arange(first, first + count)
    rows = numbers[:, None] * 10 + np.arange(channels)
    return numbers.astype(np.float64), rows.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    capacity=st.integers(1, 20),
    slack=st.integers(0, 12),
    channels=st.integers(1, 3),
    sizes=ANY_BATCHES,
    wanted=st.integers(0, 30),
)
def test_newest_is_the_end_of_a_list(
    capacity: int, slack: int, channels: int, sizes: list[int | None], wanted: int
) -> None:
    """Appends of any size, larger than the ring too; None stands for `clear`."""
    ring, model, total = SampleRing(capacity, channels, slack), [], 0
    for size in sizes:
        if size is None:
            ring.clear()
            model = []
        else:
            ring.append(*batch(total, size, channels))
            model += range(total, total + size)
            total += size
        stamps, rows = ring.newest(wanted)
        expected = model[max(len(model) - min(wanted, capacity), 0) :]
        assert stamps.tolist() == expected
        assert rows.tolist() == [[10 * n + c for c in range(channels)] for n in expected]
        assert len(ring) == min(len(model), capacity)
        assert ring.count == total


def test_an_empty_ring() -> None:
    stamps, rows = SampleRing(4, 3, 2).newest(4)
    assert stamps.shape == (0,)
    assert rows.shape == (0, 3)


def test_columns_fill_a_row_together() -> None:
    ring = SampleRing(4, 4, 2)
    forces, alines = np.array([1, 2], np.float32), np.array([[3, 4, 5], [6, 7, 8]], np.float32)
    ring.append([0.5, 0.75], forces, alines)
    stamps, rows = ring.newest(4)
    assert stamps.tolist() == [0.5, 0.75]
    assert rows.tolist() == [[1, 3, 4, 5], [2, 6, 7, 8]]
    for columns in ((forces,), (alines, forces, forces), ()):
        with pytest.raises(ValueError, match="4 values"):
            ring.append([1.0, 2.0], *columns)
    assert ring.count == 2


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (-3, 1, 9)])
def test_a_ring_without_room(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="room"):
        SampleRing(*arguments)


def test_views_are_not_copies_and_cannot_be_written() -> None:
    ring = SampleRing(8, 2, 8)
    for first in range(0, 30, 3):
        ring.append(*batch(first, 3, 2))
    (stamps, rows), (fewer_stamps, fewer_rows) = ring.newest(8), ring.newest(3)
    assert np.shares_memory(rows, fewer_rows)
    assert np.shares_memory(stamps, fewer_stamps)
    assert rows.flags.c_contiguous
    for view in (stamps, rows):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    ring.append(*batch(30, 1, 2))  # the ring itself can still be written


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.integers(1, 12),
    slack=st.integers(0, 12),
    most=st.integers(1, 12),
    before=st.integers(0, 60),
    sizes=st.lists(st.integers(1, 12), max_size=6),
)
def test_a_view_stays_for_slack_further_rows(
    capacity: int, slack: int, most: int, before: int, sizes: list[int]
) -> None:
    """And through whatever is written into rows that are reserved and never committed."""
    ring = SampleRing(capacity, 1, slack, most)
    for number in range(before):
        ring.append(*batch(number, 1, 1))
    stamps, rows = ring.newest(capacity)
    kept_stamps, kept_rows = stamps.copy(), rows.copy()
    for size in sizes:
        if ring.count + size > before + slack:
            break
        ring.append(*batch(ring.count, size, 1))
        ring.reserve(most)[:] = -1
    np.testing.assert_array_equal(stamps, kept_stamps)
    np.testing.assert_array_equal(rows, kept_rows)


def test_rows_are_not_there_until_they_are_committed() -> None:
    ring = SampleRing(4, 2, 4, batch=3)
    ring.append(*batch(0, 6, 2))
    ring.reserve(3)[:] = 7
    assert ring.newest(4)[0].tolist() == [2, 3, 4, 5]
    numbers, values = batch(6, 2, 2)
    ring.reserve(2)[:] = values
    ring.commit(numbers)
    stamps, rows = ring.newest(4)
    assert stamps.tolist() == [4, 5, 6, 7]
    assert rows[:, 0].tolist() == [40, 50, 60, 70]
    with pytest.raises(ValueError, match="at most 3"):
        ring.reserve(4)


def test_clear_keeps_as_many_as_asked() -> None:
    ring = SampleRing(4, 1, 4)
    ring.append(*batch(0, 6, 1))
    ring.clear(keep=2)
    assert ring.newest(4)[0].tolist() == [4, 5]
    ring.clear(keep=3)  # what is forgotten stays so
    assert len(ring) == 2


def test_a_view_goes_when_the_writer_comes_round() -> None:
    """So that the test above is one that can fail."""
    ring = SampleRing(4, 1, 3)
    ring.append(*batch(0, 4, 1))
    stamps, _ = ring.newest(4)
    for first in range(4, 40, 4):
        ring.append(*batch(first, 4, 1))
    assert stamps.tolist() != [0, 1, 2, 3]


@contextlib.contextmanager
def writing(ring: SampleRing, channels: int) -> Iterator[None]:
    """A thread that appends batches of changing size as fast as it can, switched to often."""
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            for size in BATCHES:
                ring.append(*batch(ring.count % WRAP, size, channels))
            started.set()

    writer, interval = threading.Thread(target=write, daemon=True), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer.start()
    try:
        assert started.wait(10)
        yield
        assert writer.is_alive()
    finally:
        stop.set()
        writer.join(10)
        sys.setswitchinterval(interval)


def test_a_writing_thread_never_shows_a_torn_window() -> None:
    capacity, channels, slack = 65, 8, 1000
    ring, checked, patience = SampleRing(capacity, channels, slack), 0, time.monotonic() + 20
    with writing(ring, channels):
        while time.monotonic() < patience and (checked < 500 or ring.count < 4000):
            before = ring.count
            stamps, rows = ring.newest(capacity)
            numbers, values = stamps.copy(), rows.copy()
            if ring.count - before > slack - max(BATCHES):
                continue  # this reader was put to sleep for longer than the slack allows
            checked += 1
            steps = np.diff(numbers)
            assert ((steps == 1) | (steps < -WRAP / 2)).all()
            expected = np.float32(numbers[:, None] * 10 + np.arange(channels))
            np.testing.assert_array_equal(values, expected)
    assert checked >= 500
    assert ring.count >= 4000


def test_clear_from_another_thread_leaves_only_what_came_after() -> None:
    ring = SampleRing(16, 2, 1000)
    with writing(ring, 2):
        for _ in range(300):
            before = ring.count
            ring.clear()
            stamps, _ = ring.newest(16)
            numbers = stamps.copy()
            if ring.count - before > 1000 - max(BATCHES) or ring.count > WRAP:
                continue
            assert (np.diff(numbers) == 1).all()
            assert len(numbers) == 0 or numbers[0] >= before
