"""The client's side of a transport: one server, whatever it speaks."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from common.program import Every
from serving.messages import Chunk, FeatureReply, Instructions, Observation

__all__ = ["Link", "LinkLost", "Loading"]

logger = logging.getLogger("serving.link")


class LinkLost(Exception):
    """The server cannot be reached (any more); the message is one line."""


class Loading:
    """Says every five seconds that a server is loading a policy, which may take minutes."""

    def __init__(self, address: str) -> None:
        """It has begun now."""
        self._address, self._began_at, self._every = address, time.monotonic(), Every()

    def heard(self) -> None:
        """The server is there, and still loading."""
        if self._every.due():
            taken_s = time.monotonic() - self._began_at
            logger.info("[CLIENT] %s is loading the policy, %.0f s so far", self._address, taken_s)


class Link(Protocol):
    """A connection to a policy server. `send` and `receive` are called from a thread each.

    Every method may raise LinkLost (try again later, with `begin`), or ServingError where the
    server refuses. Nothing waits longer than its `timeout_s`.
    """

    def begin(self, instructions: Instructions, timeout_s: float) -> None:
        """Connect, say Ready and give the instructions: afterwards the session is a fresh one.

        Loading a policy may take minutes: `timeout_s` is for the connection and the handshake.
        While the server is loading and can be heard, this goes on waiting, and logs that it does.
        """
        ...

    def send(self, observation: Observation, timeout_s: float) -> None:
        """Hand the observation to the server."""
        ...

    def receive(self, timeout_s: float) -> Chunk | FeatureReply | None:
        """The next answer; None when none came in time."""
        ...

    def close(self) -> None:
        """Let go of the connection; a `receive` that waits returns or raises LinkLost."""
        ...
