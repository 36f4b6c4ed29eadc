"""A driver's end of the connection to the rig process."""

from __future__ import annotations

import threading
import time
from collections import deque

import zmq

from common.endpoints import RIG_STATE, address
from senders.drivers import DriverError
from sim.messages import MAX_STATE_BYTES, RigState, decode_state

__all__ = ["RigLink"]

_POLL_MS = 100


class RigLink:
    """Receives the rig's states in a thread of its own, so that none is ever old news.

    Connects again by itself when the rig restarts.
    """

    def __init__(self, host: str, state_port: int, keep: int = 1) -> None:
        """Prepare a link that keeps the last `keep` states for `take`."""
        self.address = address(host, state_port)
        self.bad = 0
        self._ipv6 = ":" in host
        self._news = threading.Condition()
        self._kept: deque[RigState] = deque(maxlen=keep)
        self._newest: RigState | None = None
        self._arrived_at = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, timeout_s: float = 5.0) -> None:
        """Connect and wait for the rig; raises DriverError when there is none."""
        if self._thread is not None:
            return
        self._stop.clear()
        self._newest = None
        self._kept.clear()
        self._thread = threading.Thread(target=self._receive, name="rig-link", daemon=True)
        self._thread.start()
        try:
            found = self.newest(timeout_s, timeout_s)
        except BaseException:
            self.close()
            raise
        if found is None:
            self.close()
            raise DriverError(
                f"no simulated rig at {self.address}: start it with python sim/rig_server.py"
            )

    def close(self) -> None:
        """Disconnect; safe to call twice, and ends a wait in another thread."""
        self._stop.set()
        with self._news:
            self._news.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def newest(self, max_age_s: float, timeout_s: float = 0.0) -> RigState | None:
        """The newest state that came within the last `max_age_s`, or else within `timeout_s`.

        None when there is none.
        """
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not self._stop.is_set():
                if self._newest and time.monotonic() - self._arrived_at <= max_age_s:
                    return self._newest
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._news.wait(left)
        return None

    def take(self, count: int, timeout_s: float) -> list[RigState]:
        """The states kept since the last call, once there are `count` or the time is up."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while len(self._kept) < count and not self._stop.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
            taken = list(self._kept)
            self._kept.clear()
        return taken

    def _receive(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.set(zmq.RCVHWM, RIG_STATE.hwm)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.MAXMSGSIZE, MAX_STATE_BYTES)
        socket.set(zmq.IPV6, 1 if self._ipv6 else 0)
        # Notices a rig that vanished without closing its connection, too.
        socket.set(zmq.HEARTBEAT_IVL, 1000)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.set(zmq.RECONNECT_IVL_MAX, 500)
        socket.set(zmq.SUBSCRIBE, RIG_STATE.topic)
        try:
            socket.connect(self.address)
            while not self._stop.is_set():
                if not socket.poll(_POLL_MS):
                    continue
                frames = socket.recv_multipart()
                try:
                    if len(frames) != 2:
                        raise ValueError("a state is two frames")
                    state = decode_state(frames[1])
                except ValueError:
                    self.bad += 1
                    continue
                with self._news:
                    self._newest = state
                    self._arrived_at = time.monotonic()
                    self._kept.append(state)
                    self._news.notify_all()
        except zmq.ZMQError:
            # An address that cannot be connected to: `open` says that there is no rig there.
            pass
        finally:
            context.destroy(linger=0)
