"""The client's side of a transport: one server, whatever it speaks."""

from __future__ import annotations

from typing import Protocol

from serving.messages import Chunk, FeatureReply, Instructions, Observation

__all__ = ["Link", "LinkLost"]


class LinkLost(Exception):
    """The server cannot be reached (any more); the message is one line."""


class Link(Protocol):
    """A connection to a policy server. `send` and `receive` are called from a thread each.

    Every method may raise LinkLost (try again later, with `begin`), or ServingError where the
    server refuses. Nothing waits longer than its `timeout_s`.
    """

    def begin(self, instructions: Instructions, timeout_s: float) -> None:
        """Connect, say Ready and give the instructions: afterwards the session is a fresh one.

        Loading a policy may take minutes: `timeout_s` is for the connection and the handshake;
        while the server is loading and answers that it is, this goes on waiting.
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
