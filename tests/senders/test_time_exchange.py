"""The sender's side of the exchange, against the receiver's real server and against none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from common import wire
from common.clock import now, wall
from common.clock_offset import ClockOffset
from common.counters import MalformedCounters
from receiver.time_exchange import TimeServer
from senders.time_exchange import TimeExchange, exchanging_time
from tests.senders.conftest import wait_until
from tests.support import free_ports

PATIENCE_S = 20.0


class Asked(ClockOffset):
    """A clock that keeps the exchanges, too."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[float, float, float]] = []

    def exchanged(self, offset_s: float, delay_s: float, at: float) -> None:
        self.kept.append((offset_s, delay_s, at))
        super().exchanged(offset_s, delay_s, at)


@contextmanager
def serving(port: int, clock: Asked, seen: list[tuple[str, tuple[str, ...]]]) -> Iterator[None]:
    def find(source: str, names: Sequence[str]) -> list[ClockOffset]:
        seen.append((source, tuple(names)))
        return [clock]

    context: zmq.Context[Any] = zmq.Context()
    server = TimeServer(context, "127.0.0.1", port, find, MalformedCounters())
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        context.destroy(linger=0)


@contextmanager
def running(exchange: TimeExchange) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=exchange.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("ahead_s", [0.0, 3.25, -7200.0])
def test_the_offset_found_is_within_the_round_trip(ahead_s: float) -> None:
    """A sender whose clock is ahead: the receiver knows by how much, messages or not."""
    port, clock, seen = free_ports(1)[0], Asked(), list[tuple[str, tuple[str, ...]]]()

    def sender_clock() -> float:
        return now() + ahead_s

    exchange = TimeExchange("127.0.0.1", port, "camera", ["View1", "OAK"], sender_clock)
    with serving(port, clock, seen), running(exchange):
        wait_until(lambda: len(clock.kept) >= 8, "a burst of exchanges")
    assert set(seen) == {("camera", ("View1", "OAK"))}
    for offset_s, delay_s, at in clock.kept:
        assert delay_s >= 0.0
        assert abs(offset_s + ahead_s) <= 0.5 * delay_s + 1e-6
        assert abs(at - now()) < 60.0
    # Messages that take 30 ms at least: exchanges tell the offset from that.
    begin = now()
    for number in range(60):
        arrival = begin + number / 100
        clock.update(arrival - 0.03 + ahead_s, arrival)
    assert clock.two_way
    assert clock.offset_s is not None
    best_s = min(delay_s for _, delay_s, _ in clock.kept)
    assert abs(clock.offset_s + ahead_s) <= 0.5 * best_s + 1e-6
    assert clock.delay_s == pytest.approx(0.03, abs=0.5 * best_s + 1e-6)


def test_a_receiver_that_starts_late_and_comes_again_is_found() -> None:
    port, clock = free_ports(1)[0], Asked()
    exchange = TimeExchange("127.0.0.1", port, "robot")
    with running(exchange):
        wait_until(lambda: exchange._seq >= 2, "questions nobody hears")
        for _ in range(2):
            before = len(clock.kept)
            with serving(port, clock, []):
                wait_until(lambda before=before: len(clock.kept) >= before + 2, "answers")  # type: ignore[misc]


def test_a_clock_that_was_set_is_asked_about_at_once() -> None:
    port, clock, shift = free_ports(1)[0], Asked(), [0.0]
    exchange = TimeExchange("127.0.0.1", port, "robot", clock=lambda: now() + shift[0])
    with serving(port, clock, []), running(exchange):
        wait_until(lambda: exchange._burst == 0 and exchange.answers >= 8, "the first burst")
        shift[0] = 0.5
        wait_until(lambda: exchange._burst > 0, "another burst")
        wait_until(lambda: any(o < -0.4 for o, _, _ in clock.kept), "the new offset")


@contextmanager
def answering(answer: Callable[[wire.TimeRequest], list[bytes]]) -> Iterator[int]:
    """A receiver that answers questions as it likes."""
    context: zmq.Context[Any] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            if router.poll(20):
                peer, data = router.recv_multipart()
                request = wire.decode_time_request([data])
                if request.seq is not None:
                    router.send_multipart([peer, *answer(request)])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        over.set()
        thread.join(PATIENCE_S)
        context.destroy(linger=0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda request: [b"\xc1junk"],
        lambda request: [b"", b"", b""],
        lambda request: [wire.encode_time_reply(wire.TimeReply(request.seq + 7, 1.0, 1.0))],
    ],
)
def test_answers_that_are_none_do_not_end_it(
    bad: Callable[[wire.TimeRequest], list[bytes]],
) -> None:
    asked: list[int] = []

    def answer(request: wire.TimeRequest) -> list[bytes]:
        asked.append(request.seq or 0)
        if len(asked) < 2:
            return bad(request)
        return [wire.encode_time_reply(wire.TimeReply(request.seq or 0, now(), now()))]

    with answering(answer) as port, running(exchange := TimeExchange("127.0.0.1", port, "sensor")):
        wait_until(lambda: exchange.answers >= 1, "the first sound answer")
    assert asked[1] == asked[0] + 1


def test_it_asks_ever_more_rarely_where_nobody_answers() -> None:
    exchange = TimeExchange("127.0.0.1", 1, "sensor")
    exchange._unanswered = 5
    assert exchange._pause_s() == 5.0
    exchange._unanswered = 0
    pauses = [exchange._pause_s() for _ in range(10)]
    assert pauses == [0.1] * 8 + [0.5] * 2


def test_a_host_that_is_none_is_said_and_the_sender_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with exchanging_time("no such host, nor any", 7, "sensor"):
        wait_until(lambda: "no exchange of timestamps" in caplog.text, "a warning")


def test_port_0_asks_nobody() -> None:
    before = threading.active_count()
    with exchanging_time("127.0.0.1", 0, "sensor"):
        assert threading.active_count() == before


PROGRAMS = {
    "robot_sender": ("robot", ["--robot", "on", "--action-host", "127.0.0.1"]),
    "jetson_camera_sender": (
        "camera",
        ["--server-ip", "127.0.0.1", "--width", "320", "--height", "180"],
    ),
    "force_sensor_sender": ("sensor", ["--server-ip", "127.0.0.1"]),
}


@pytest.mark.parametrize("script", sorted(PROGRAMS))
def test_the_programs_exchange_time(script: str, start: Any) -> None:
    source, options = PROGRAMS[script]
    own, port = free_ports(2)
    clock, seen = Asked(), list[tuple[str, tuple[str, ...]]]()
    with serving(port, clock, seen):
        given = [*options, "--driver", "synthetic", "--port", str(own), "--time-port", str(port)]
        program = start(script, *given)
        wait_until(lambda: len(clock.kept) >= 3, "exchanges")
        assert program.stop() == 0
    ((said, names),) = set(seen)
    assert said == source
    assert bool(names) == (source == "camera")
    # The same machine: its wall clock against the time base of this process.
    offset_s, delay_s, _ = min(clock.kept, key=lambda kept: kept[1])
    assert abs(offset_s - (now() - wall())) <= 0.5 * delay_s + 0.05
    assert "[TIME] the receiver at 127.0.0.1" in program.said
