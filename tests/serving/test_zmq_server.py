"""The ZeroMQ end alone, with messages that no client of ours sends."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import zmq

from serving.packed import Note, encode
from serving.transports.zmq_common import Envelope
from serving.transports.zmq_link import ZmqLink
from serving.transports.zmq_server import ZmqServer
from tests.serving.wires import Servers, begun, exchange, instructions, serving
from tests.support import wait_until


def _waiting() -> int:
    """Threads of the server that wait for a policy."""
    return sum(thread.name == "zmq-loading" for thread in threading.enumerate())


def _begin_again_and_again(servers: Servers) -> int:
    """One session's Ready and instructions in turn; the most threads that waited meanwhile."""
    most, wanted = 0, instructions("hold?load_s=60")
    with zmq.Context.instance().socket(zmq.DEALER) as greedy:
        greedy.linger = 0
        greedy.connect(f"tcp://127.0.0.1:{servers.zmq.port}")
        for attempt in range(100):
            envelope = Envelope(b"x" * 16, attempt)
            for message in (Note("ready"), wanted):
                greedy.send_multipart([envelope.pack(), *encode(message)])
            wait_until(lambda told=envelope: servers.zmq._session(told), "Ready to be read")
            most = max(most, _waiting())
    return most


def test_calls_that_wait_for_a_policy_leave_threads_for_the_others() -> None:
    with serving() as made:
        _begin_again_and_again(made)
        wait_until(lambda: _waiting() <= 1, "the waits of all attempts but the last to end")
        other = ZmqLink(f"127.0.0.1:{made.zmq.port}")
        exchange(begun(other), 1)
        other.close()


def test_threads_that_wait_for_a_policy_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread that has begun to wait does not see that its session ended.
    monkeypatch.setattr("serving.policy_store._LOOK_S", 3600.0)
    with serving() as made:
        assert _begin_again_and_again(made) < 40  # 32, and some that are about to end
        assert made.refused("zmq", "busy")
    wait_until(lambda: not _waiting(), "the waits to end with the engine")


def test_a_load_that_gets_to_run_late_leaves_the_next_attempt_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, held, go_on = threading.Event(), threading.Event(), threading.Event()
    load = ZmqServer._load

    def late(server: ZmqServer, envelope: Envelope, *given: Any) -> None:
        if not first.is_set():
            first.set()
            go_on.wait(30)
            load(server, envelope, *given)
            held.set()
        else:
            load(server, envelope, *given)

    monkeypatch.setattr(ZmqServer, "_load", late)
    with serving() as made:
        where = f"tcp://127.0.0.1:{made.zmq.port}"
        with zmq.Context.instance().socket(zmq.DEALER) as before:
            before.linger = 0
            before.connect(where)
            link = ZmqLink(where.removeprefix("tcp://"))
            for message in (Note("ready"), instructions("hold")):
                before.send_multipart([Envelope(link._session, 0).pack(), *encode(message)])
            assert first.wait(30)
            begun(link)  # the same session, attempt 1
            exchange(link, 1)
            go_on.set()
            assert held.wait(30)
            exchange(link, 2)
            link.close()
