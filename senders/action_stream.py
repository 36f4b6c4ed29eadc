"""The receiver's actions as they come in, decoded and timed; for one thread."""

from __future__ import annotations

import time

import zmq

from common import endpoints
from common.counters import MalformedCounters
from common.program import open_socket
from common.wire import MAX_ACTION, Action, MalformedMessage, decode_action

__all__ = ["ActionStream"]

_MOST_AT_ONCE = 32


class ActionStream:
    """A subscription that connects by itself, again and again, as receivers come and go.

    Attributes:
        where: the address that it listens to.
        refused: the actions that were not followed, by reason.
    """

    def __init__(self, host: str, port: int) -> None:
        """Connect; OptionError for an address that cannot be used."""
        options = {
            zmq.RCVHWM: endpoints.ACTION.hwm,
            zmq.MAXMSGSIZE: MAX_ACTION,
            zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 1000,
            # A receiver whose machine went away without a word is noticed, and looked for again.
            zmq.HEARTBEAT_IVL: 1000,
            zmq.HEARTBEAT_TIMEOUT: 3000,
            zmq.LINGER: 0,
        }
        self._socket = open_socket(zmq.SUB, host, port, options, bind=False)
        self._socket.subscribe(endpoints.ACTION.topic)
        self.where = f"{host}:{port}"
        self.refused = MalformedCounters()

    def poll(self) -> list[tuple[Action, float]]:
        """The actions that came in since the last call, each with its arrival (monotonic)."""
        arrived: list[tuple[Action, float]] = []
        for _ in range(_MOST_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                arrived.append((decode_action(frames), time.monotonic()))
            except MalformedMessage as error:
                self.refused.add(error)
        return arrived

    def refuse(self, reason: str) -> None:
        """Count an action that was sound but is not followed."""
        self.refused.add(MalformedMessage(endpoints.ACTION.stream, reason))

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
