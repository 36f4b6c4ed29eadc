"""What both ends of the ZeroMQ transport agree on.

A message is [envelope, header, frames …], the latter two as `serving.packed` makes them. The
envelope names the session, so that it outlives a connection, and the attempt to begin it: what is
left over from an earlier attempt is thrown away.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import zmq

from common.wire.checks import Buffer
from serving.messages import MAX_MESSAGE, BadMessage

__all__ = ["MAX_PARTS", "Envelope", "tune"]

_LAYOUT = struct.Struct("<4s16sI")
_MAGIC = b"DRZ1"
MAX_PARTS = 24
"""Frames of a message, routing id and envelope among them; a few more than there can be."""
_HWM = 2
"""Messages that may wait at each end of a connection: newer observations are worth more."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Which session a message belongs to.

    Attributes:
        session: 16 random bytes that the client chose.
        attempt: how often the client has begun, this time counted.
    """

    session: bytes
    attempt: int

    def pack(self) -> bytes:
        """As a frame."""
        return _LAYOUT.pack(_MAGIC, self.session, self.attempt)

    @classmethod
    def unpack(cls, frame: Buffer) -> Envelope:
        """From a frame; BadMessage for anything else."""
        if len(frame) != _LAYOUT.size or bytes(frame[:4]) != _MAGIC:
            raise BadMessage("not a message of ours")
        _, session, attempt = _LAYOUT.unpack(frame)
        return cls(session, attempt)


def tune(made: zmq.Socket[Any], heartbeat_ms: int) -> None:
    """Bounds and heartbeats, before binding or connecting.

    A peer that answers no heartbeat for three of them is disconnected: that frees what the server
    holds for it, and makes a client connect anew rather than wait for TCP, which takes minutes to
    give up a network that was cut without a word.
    """
    made.linger = 0
    made.rcvhwm = made.sndhwm = _HWM
    made.maxmsgsize = MAX_MESSAGE  # bytes of one frame
    made.heartbeat_ivl = heartbeat_ms
    made.heartbeat_timeout = made.heartbeat_ttl = 3 * heartbeat_ms
    made.handshake_ivl = 5_000
