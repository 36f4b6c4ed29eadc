"""What the receiver and its encoding process say to each other, over a socket pair.

A message is a msgpack map in one piece, its length before it. Both ends are ours, yet what comes in
is read like anything from a wire: bounded, checked, never unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import msgpack

from common import wire
from policies.base import PolicySpec

__all__ = ["MAX_MESSAGE", "Gone", "receive", "send", "spec_of"]

MAX_MESSAGE = 64 * wire.MAX_JPEG


class Gone(Exception):
    """The other end has closed, or what it says cannot be read."""


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    """Send one message; Gone when nobody is there."""
    try:
        connection.send_bytes(msgpack.packb(message))
    except (OSError, ValueError) as error:
        raise Gone(str(error)) from None


def receive(connection: Connection) -> dict[str, Any]:
    """Wait for one message; Gone when there will be none."""
    try:
        message = msgpack.unpackb(connection.recv_bytes(MAX_MESSAGE))
    except (OSError, EOFError, ValueError, msgpack.UnpackException) as error:
        raise Gone(str(error)) from None
    if not isinstance(message, dict):
        raise Gone("not a message")
    return message


def spec_of(said: Mapping[str, Any]) -> PolicySpec:
    """A policy's spec out of a message, which knows no tuples."""
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in said.items()
    }
    return PolicySpec(**values)
