from __future__ import annotations

import threading
import time

import pytest

from receiver import backlog
from receiver.backlog import Backlog
from tests.support import wait_until


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_PATIENCE_S", 20.0)  # whatever else the machine does


def test_messages_wait_until_they_are_many() -> None:
    read: list[int] = []
    waiting = Backlog(read.append, 3)
    for number in range(8):
        waiting.add(number)
        assert read == list(range(3 * ((number + 1) // 3)))
    waiting.read()
    assert read == list(range(8))


def test_an_urgent_one_is_read_at_once_after_those_before_it() -> None:
    read: list[int] = []
    waiting = Backlog(read.append, 100)
    waiting.add(1)
    waiting.add(2, urgent=True)
    assert read == [1, 2]


def test_who_looks_knows_all_that_came() -> None:
    read: list[int] = []
    waiting = Backlog(read.append, 100)
    for number in range(3):
        waiting.add(number)
        waiting.catch_up()
        assert read == list(range(number + 1))
    waiting.catch_up()
    assert read == [0, 1, 2]


def test_who_looks_while_another_reads_waits_for_the_last_one(patient: None) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), []

    def slowly(number: int) -> None:
        begun.set()
        assert go_on.wait(20)
        read.append(number)

    waiting = Backlog(slowly, 1)
    adding = threading.Thread(target=waiting.add, args=(7,))
    adding.start()
    assert begun.wait(20)  # nothing waits any more, and it is not read either
    seen: list[list[int]] = []

    def look() -> None:
        waiting.catch_up()
        seen.append(list(read))

    looking = threading.Thread(target=look)
    looking.start()
    assert not seen
    go_on.set()
    looking.join(20)
    adding.join(20)
    assert seen == [[7]]


def test_who_looks_does_not_read_what_comes_meanwhile() -> None:
    read: list[int] = []

    def flooded(number: int) -> None:
        read.append(number)
        if number < 1000:  # another comes for each that is read
            waiting.add(number + 1)

    waiting = Backlog(flooded, 10_000)
    for number in range(3):
        waiting.add(number)
    waiting.catch_up()
    assert read == [0, 1, 2]


def test_who_looks_does_not_wait_for_ever() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hangs(_: int) -> None:
        begun.set()
        assert go_on.wait(20)

    waiting = Backlog(hangs, 1)
    adding = threading.Thread(target=waiting.add, args=(7,))
    adding.start()
    assert begun.wait(20)
    begin = time.monotonic()
    waiting.catch_up()
    assert backlog._PATIENCE_S <= time.monotonic() - begin < 10
    go_on.set()
    adding.join(20)


def test_what_fails_while_another_looks_fails_in_the_streams_own_thread() -> None:
    read: list[int] = []

    def fails(number: int) -> None:
        if number == 1:
            raise KeyError("a mistake")
        read.append(number)

    waiting = Backlog(fails, 100)
    for number in range(3):
        waiting.add(number)
    waiting.catch_up()
    waiting.catch_up()
    assert read == [0]
    with pytest.raises(KeyError, match="a mistake"):
        waiting.add(3, urgent=True)
    waiting.read()
    assert read == [0, 2, 3]


def test_each_is_read_once_and_in_order_whoever_reads(patient: None) -> None:
    read: list[int] = []
    waiting, stop = Backlog(read.append, 5), threading.Event()
    count, seen = 20_000, []

    def look() -> None:
        while not stop.is_set():
            before = added[0]
            waiting.catch_up()
            seen.append(len(read) - before)

    added = [0]
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        wait_until(lambda: len(seen) > 10, "somebody to look", 20)
        for number in range(count):
            waiting.add(number)
            added[0] = number + 1
        waiting.read()
    finally:
        stop.set()
        for looker in lookers:
            looker.join(20)
    assert read == list(range(count))
    assert min(seen) >= 0  # all that had been added when one began to look
