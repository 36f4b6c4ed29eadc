"""The force sensor sender as a process against a plain UDP socket, and its parts."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from common.clock import wall
from senders.batcher import Batcher
from senders.drivers import DriverError, SampleBlock
from senders.force_sensor_sender import DatagramSender
from senders.sensors.synthetic import SyntheticForceSensor

SAMPLE = 4120


class Inbox:
    """A receiver's plain UDP socket."""

    def __init__(self, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.datagrams: list[bytes] = []

    def has(self, count: int) -> Callable[[], bool]:
        def enough() -> bool:
            while True:
                try:
                    self.datagrams.append(self.socket.recv(65_535))
                except BlockingIOError:
                    return len(self.datagrams) >= count

        return enough

    def stamps(self) -> np.ndarray:
        """(N, 2): timestamp and send timestamp of every sample."""
        return np.array(
            [
                struct.unpack_from("<dd", datagram, 4 + n * SAMPLE)
                for datagram in self.datagrams
                for n in range(struct.unpack_from("<I", datagram)[0])
            ]
        )


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.socket.close()


@pytest.fixture
def sensor(start: Callable[..., Any]) -> Callable[..., Any]:
    """`sensor(port, *options)`: a sender of made-up samples."""

    def begin(port: int, *options: object) -> Any:
        where = ("--server-ip", "127.0.0.1", "--port", port)
        return start("force_sensor_sender", "--driver", "synthetic", *where, *options)

    return begin


def test_650_samples_a_second_come_in_batches_of_ten(sensor: Any, inbox: Inbox, until: Any) -> None:
    program = sensor(inbox.port)
    until(inbox.has(120), "120 datagrams")
    assert program.stop() == 0, program.said
    for datagram in inbox.datagrams[:120]:
        assert len(datagram) == 4 + 10 * SAMPLE
        assert struct.unpack_from("<I", datagram) == (10,)
    stamps = inbox.stamps()[:1200]
    assert np.diff(stamps[:, 0]) == pytest.approx(1 / 650, abs=1e-5)
    assert (stamps[:, 1] >= stamps[:, 0]).all() and abs(wall() - stamps[-1, 1]) < 20
    values = np.frombuffer(inbox.datagrams[0], "<f4", 1026, 4 + 16)
    assert 0.0 < values[0] < 0.6  # newtons
    assert values[1:].max() > 0.8 and np.argmax(values[1:]) > 100


def test_the_batch_size_is_the_one_asked_for(sensor: Any, inbox: Inbox, until: Any) -> None:
    sensor(inbox.port, "--batch", 15)
    until(inbox.has(5), "datagrams")
    assert {len(datagram) for datagram in inbox.datagrams} == {4 + 15 * SAMPLE}


def test_no_receiver_and_a_new_one_are_nothing_to_the_sender(sensor: Any, until: Any) -> None:
    first = Inbox()
    program = sensor(first.port)
    until(first.has(5), "datagrams")
    port = first.port
    first.socket.close()
    second = Inbox(port)
    until(second.has(5), "datagrams at the second receiver")
    second.socket.close()
    assert program.stop() == 0, program.said
    assert "Traceback" not in program.said


def test_a_killed_sender_starts_again(sensor: Any, inbox: Inbox, until: Any) -> None:
    program = sensor(inbox.port)
    until(inbox.has(5), "datagrams")
    program.process.kill()
    program.ended()
    before = len(inbox.datagrams)
    sensor(inbox.port)
    until(inbox.has(before + 20), "datagrams of the second sender")


def test_a_stop_sends_the_samples_that_are_left(sensor: Any, inbox: Inbox, until: Any) -> None:
    program = sensor(inbox.port, "--driver-options", "block=1", "--rate-hz", 20, "--batch", 15)
    until(lambda: "the sensor is open" in program.said, "the sensor")
    until(inbox.has(1), "a datagram")
    assert program.stop() == 0
    inbox.has(2)()
    sent = sum(struct.unpack_from("<I", datagram)[0] for datagram in inbox.datagrams)
    assert f"sent {sent} in {len(inbox.datagrams)} datagrams" in program.said


def test_a_datagram_that_cannot_be_sent_is_counted_and_never_raises() -> None:
    unreachable = DatagramSender(socket.AF_INET, ("255.255.255.255", 9999))  # no broadcast allowed
    assert unreachable.send(b"x") is False
    assert sum(unreachable.dropped.values()) == 1 and unreachable.sent == 0
    unreachable.close()
    probe = Inbox()
    probe.socket.close()
    refused = DatagramSender(socket.AF_INET, ("127.0.0.1", probe.port))
    assert all(refused.send(b"x") for _ in range(50))
    refused.close()


# --- batches -------------------------------------------------------------------------------------


def block(first: int, count: int, length: int = 4) -> SampleBlock:
    index = np.arange(first, first + count)
    alines = np.tile(index[:, None], (1, length)).astype(np.float32)
    return SampleBlock(index.astype(float), index.astype(np.float32), alines)


def test_batches_hold_every_sample_once_and_in_order() -> None:
    batcher, given, taken = Batcher(10, 650.0), 0, []
    for count in (3, 9, 1, 40, 10, 10):
        batcher.add(block(given, count), 0.0)
        given += count
        batches = list(batcher.ready(0.0))
        assert all(len(batch) == 10 for batch in batches)
        taken += batches
    rest = batcher.rest()
    assert rest is not None and batcher.rest() is None
    taken.append(rest)
    numbers = np.concatenate([batch.timestamps for batch in taken])
    assert numbers.tolist() == list(range(73))
    assert np.concatenate([batch.alines[:, 0] for batch in taken]).tolist() == list(range(73))


def test_samples_that_grow_old_are_sent_before_the_batch_is_full() -> None:
    batcher = Batcher(10, 100.0)
    batcher.add(block(0, 4), 50.0)
    assert list(batcher.ready(50.19)) == []
    (batch,) = batcher.ready(50.21)
    assert len(batch) == 4
    assert list(batcher.ready(60.0)) == []


def test_unsound_samples_are_left_out_and_counted() -> None:
    batcher, bad = Batcher(4, 650.0), block(0, 5)
    bad.alines[1, 2] = np.nan
    bad.forces[3] = np.inf
    batcher.add(bad, 0.0)
    rest = batcher.rest()
    assert rest is not None and rest.timestamps.tolist() == [0, 2, 4]
    assert batcher.unsound == 2


def test_blocks_that_do_not_fit_are_the_drivers_fault() -> None:
    batcher = Batcher(15, 650.0)
    with pytest.raises(DriverError, match="--batch 7 at most"):
        batcher.add(block(0, 5, 2050), 0.0)
    good = block(0, 5)
    with pytest.raises(DriverError):
        batcher.add(SampleBlock(good.timestamps, good.forces[:4], good.alines), 0.0)


def test_the_made_up_sensor_keeps_to_its_grid() -> None:
    made = SyntheticForceSensor(rate_hz=2000.0, block=20, aline_length=8)
    with pytest.raises(DriverError):
        made.read(0.1)
    made.open()
    blocks = [made.read(1.0) for _ in range(5)]
    made.close()
    stamps = np.concatenate([b.timestamps for b in blocks if b is not None])
    assert len(stamps) == 100
    assert np.diff(stamps) == pytest.approx(1 / 2000, abs=1e-6)
