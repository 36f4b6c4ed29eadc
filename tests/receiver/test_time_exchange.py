"""The receiver's side of the exchange of timestamps, over real sockets."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.clock import now
from common.clock_offset import ClockOffset
from common.counters import MalformedCounters
from common.wire import MalformedMessage, TimeReply, TimeRequest
from receiver.sockets import InputError
from receiver.time_exchange import TimeServer
from tests.support import free_ports

PATIENCE_S = 20.0


class Recording(ClockOffset):
    """A clock that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, float, float]] = []

    def exchanged(self, offset_s: float, delay_s: float, at: float) -> None:
        self.told.append((offset_s, delay_s, at))


class Served:
    """A running server and what its clocks were told."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.counters = MalformedCounters(log_every_s=1e9)
        self.clocks: dict[tuple[str, tuple[str, ...]], Recording] = {}
        self.context: zmq.Context[Any] = zmq.Context()
        self.server = TimeServer(self.context, "127.0.0.1", self.port, self.find, self.counters)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,), daemon=True)
        self.thread.start()

    def find(self, source: str, names: Sequence[str]) -> list[ClockOffset]:
        return [self.clocks.setdefault((source, tuple(names)), Recording())]

    @contextmanager
    def peer(self, kind: int = zmq.DEALER) -> Iterator[zmq.Socket[bytes]]:
        with self.context.socket(kind) as peer:
            peer.linger = 0
            peer.connect(f"tcp://127.0.0.1:{self.port}")
            yield peer

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            assert self.thread.is_alive()
            time.sleep(0.005)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.stop.set()
    made.thread.join(PATIENCE_S)
    assert not made.thread.is_alive()
    made.context.destroy(linger=0)


def ask(peer: zmq.Socket[bytes], request: TimeRequest) -> TimeReply:
    peer.send(wire.encode_time_request(request))
    assert peer.poll(1e3 * PATIENCE_S)
    return wire.decode_time_reply(peer.recv_multipart())


def test_an_exchange_bounds_the_offset(served: Served) -> None:
    ahead_s = 1234.5  # of the sender's clock
    with served.peer() as peer:
        t0 = now() + ahead_s
        reply = ask(peer, TimeRequest("robot", (), 7, t0))
        t3 = now() + ahead_s
        report = TimeRequest("robot", answered_seq=7, answered_at=t3)
        peer.send(wire.encode_time_request(report))
        served.until(lambda: served.server.exchanges)
        # The same question is concluded once.
        peer.send(wire.encode_time_request(report))
        again = ask(peer, TimeRequest("robot", (), 8, t0))
    assert reply.seq == 7
    assert t0 - ahead_s <= reply.received_at <= reply.replied_at <= t3 - ahead_s
    assert again.seq == 8
    ((offset_s, delay_s, at),) = served.clocks["robot", ()].told
    assert 0.0 <= delay_s <= t3 - t0
    assert abs(offset_s + ahead_s) <= 0.5 * delay_s + 1e-6
    assert reply.received_at <= at <= reply.replied_at


def test_a_request_socket_may_ask_and_report_in_one_message(served: Served) -> None:
    with served.peer(zmq.REQ) as peer:
        ask(peer, TimeRequest("camera", ("View1", "OAK"), 1, now()))
        came_at = now()
        ask(peer, TimeRequest("camera", ("View1", "OAK"), 2, now(), 1, came_at))
    ((offset_s, delay_s, _),) = served.clocks["camera", ("View1", "OAK")].told
    assert abs(offset_s) <= 0.5 * delay_s + 1e-6


def test_only_what_was_answered_to_this_peer_counts(served: Served) -> None:
    with served.peer() as one, served.peer() as other:
        ask(one, TimeRequest("robot", (), 1, now()))
        for peer, seq in ((other, 1), (one, 2)):
            report = TimeRequest("robot", (), 50, now(), answered_seq=seq, answered_at=now())
            ask(peer, report)
    assert served.server.exchanges == 0


@pytest.mark.parametrize("shift_s", [-5.0, 60.0])
def test_a_clock_that_was_set_between_is_left_out(served: Served, shift_s: float) -> None:
    with served.peer() as peer:
        ask(peer, TimeRequest("robot", (), 1, now()))
        ask(peer, TimeRequest("robot", (), 2, now(), 1, now() + shift_s))
    assert served.server.exchanges == 0


def test_many_peers_and_many_questions_are_forgotten(served: Served) -> None:
    for number in range(150):
        with served.peer() as peer:
            for seq in range(3 if number else 100):
                peer.send(wire.encode_time_request(TimeRequest("robot", (), seq, now())))
            assert peer.poll(1e3 * PATIENCE_S)
    served.until(lambda: served.server.answered >= 100)
    peers = served.server._peers
    assert len(peers) <= 64
    assert all(len(given) <= 16 for given in peers.values())


BODY: dict[str, Any] = {"source": "robot", "seq": 1, "t0": 1.7e9}
MALFORMED: list[tuple[str, list[bytes]]] = [
    ("size", [b"", b""]),
    ("parts", [msgpack.packb(BODY), b"more"]),
    ("parts", [b"x"] * 50),
    ("size", [b""]),
    ("body", [b"\xc1"]),
    ("body", [b"\xdf\xff\xff\xff\xff"]),
    ("body", [b"\x91" * 2000]),
    ("body", [msgpack.packb([1, 2])]),
    ("header_field", [msgpack.packb({})]),
    ("header_field", [msgpack.packb({"source": "robot"})]),
    ("header_field", [msgpack.packb(BODY | {"source": ""})]),
    ("header_field", [msgpack.packb(BODY | {"source": "a" * 129})]),
    ("header_field", [msgpack.packb(BODY | {"source": "a\n"})]),
    ("header_field", [msgpack.packb(BODY | {"source": 3})]),
    ("header_field", [msgpack.packb(BODY | {"names": "View1"})]),
    ("header_field", [msgpack.packb(BODY | {"names": [3]})]),
    ("header_field", [msgpack.packb(BODY | {"names": ["a"] * 17})]),
    ("header_field", [msgpack.packb(BODY | {"seq": -1})]),
    ("header_field", [msgpack.packb(BODY | {"seq": True})]),
    ("header_field", [msgpack.packb(BODY | {"seq": 1 << 63})]),
    ("header_field", [msgpack.packb(BODY | {"answered": "1", "t3": 1.0})]),
    ("timestamp", [msgpack.packb(BODY | {"t0": None})]),
    ("timestamp", [msgpack.packb(BODY | {"t0": float("nan")})]),
    ("timestamp", [msgpack.packb(BODY | {"t0": float("inf")})]),
    ("timestamp", [msgpack.packb(BODY | {"t0": 2.0**33})]),
    ("timestamp", [msgpack.packb(BODY | {"t0": "1"})]),
    ("timestamp", [msgpack.packb(BODY | {"answered": 1})]),
    ("timestamp", [msgpack.packb(BODY | {"answered": 1, "t3": -1.0})]),
]


def test_malformed_messages_are_counted_and_nothing_stops(served: Served) -> None:
    expected: dict[str, int] = {}
    with served.peer() as peer:
        for reason, frames in MALFORMED:
            peer.send_multipart(frames)
            expected[reason] = expected.get(reason, 0) + 1
        ask(peer, TimeRequest("robot", (), 1, now()))
    assert served.counters.snapshot() == {"time": expected}


def test_random_bytes_and_messages_that_are_too_large(served: Served) -> None:
    rng = random.Random(3)
    with served.peer() as peer:
        for _ in range(300):
            peer.send(rng.randbytes(rng.randrange(1, 200)))
        ask(peer, TimeRequest("robot", (), 1, now()))
    with served.peer() as peer:
        peer.send(os.urandom(8 << 20))  # disconnected before it is taken in
    with socket.create_connection(("127.0.0.1", served.port)) as stranger:
        stranger.sendall(os.urandom(4096))
    with served.peer() as peer:
        ask(peer, TimeRequest("robot", (), 1, now()))
    # What a stranger says may look like messages of the oldest ZeroMQ.
    assert served.counters.total >= 300


def test_a_port_that_is_taken_is_said_in_one_line(served: Served) -> None:
    with pytest.raises(InputError, match=f"tcp 127.0.0.1:{served.port} for the time exchange"):
        TimeServer(served.context, "127.0.0.1", served.port, served.find, served.counters)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_the_decoders_return_or_raise_malformed(data: bytes) -> None:
    for decode in (wire.decode_time_request, wire.decode_time_reply):
        try:
            decode([data])
        except MalformedMessage as error:
            assert error.stream == "time"


stamps = st.floats(0.0, 2.0**33, exclude_max=True)
numbers = st.integers(0, (1 << 63) - 1)


@given(numbers, stamps, numbers, stamps, st.lists(st.text("abcé 1_", min_size=1, max_size=9)))
def test_messages_come_back_as_they_were(
    seq: int, t0: float, answered: int, t3: float, names: list[str]
) -> None:
    few = tuple(names[:16])
    for request in (
        TimeRequest("camera", few, seq, t0),
        TimeRequest("camera", few, answered_seq=answered, answered_at=t3),
        TimeRequest("camera", few, seq, t0, answered, t3),
    ):
        assert wire.decode_time_request([wire.encode_time_request(request)]) == request
    reply = TimeReply(seq, t0, t3)
    assert wire.decode_time_reply([wire.encode_time_reply(reply)]) == reply
