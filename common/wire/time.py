"""The exchange of timestamps: a sender asks, the receiver answers, the sender reports the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from common import endpoints
from common.wire.checks import (
    MAX_NAME,
    Buffer,
    MalformedMessage,
    optional_count,
    stamp,
    unpack_map,
    view,
)

MAX_TIME = 4096
"""Bytes of a message of the exchange."""
MAX_NAMES = 16
"""Cameras of one sender."""


@dataclass(frozen=True, slots=True)
class TimeRequest:
    """A sender's message: asks for the time, reports when an answer came in, or does both.

    Attributes:
        source: whose clock it is: `robot`, `camera` or `sensor`.
        names: the cameras that stamp by it, by their names on the wire; empty for other sources.
        seq: counts the questions; None in a mere report.
        sent_at: t0, when it was sent, by the sender's clock; None in a mere report.
        answered_seq: the question whose answer came in; None in a mere question.
        answered_at: t3, when that answer came in, by the sender's clock.
    """

    source: str
    names: tuple[str, ...] = ()
    seq: int | None = None
    sent_at: float | None = None
    answered_seq: int | None = None
    answered_at: float | None = None


@dataclass(frozen=True, slots=True)
class TimeReply:
    """The receiver's answer: t1 and t2, when it took the question and when it answered."""

    seq: int
    received_at: float
    replied_at: float


def encode_time_request(request: TimeRequest) -> bytes:
    """A sender's message; the keys of what it leaves out are left out."""
    body: dict[str, Any] = {"source": request.source}
    if request.names:
        body["names"] = list(request.names)
    if request.seq is not None:
        body |= {"seq": request.seq, "t0": request.sent_at}
    if request.answered_seq is not None:
        body |= {"answered": request.answered_seq, "t3": request.answered_at}
    packed: bytes = msgpack.packb(body)
    return packed


def encode_time_reply(reply: TimeReply) -> bytes:
    """The receiver's answer."""
    packed: bytes = msgpack.packb(
        {"seq": reply.seq, "t1": reply.received_at, "t2": reply.replied_at}
    )
    return packed


def _body(stream: str, data: Buffer) -> dict[Any, Any]:
    content = view(stream, data)
    if not 0 < len(content) <= MAX_TIME:
        raise MalformedMessage(stream, "size", f"{len(content)} bytes")
    try:
        body = unpack_map(content)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "body", "not msgpack") from None
    if not isinstance(body, dict):
        raise MalformedMessage(stream, "body", "not a map")
    return body


def _name(stream: str, value: object, key: str) -> str:
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 0 < len(value.encode()) <= MAX_NAME
    ):
        raise MalformedMessage(stream, "header_field", key)
    return value


def _pair(
    stream: str, body: dict[Any, Any], key: str, stamp_key: str
) -> tuple[int, float] | tuple[None, None]:
    """A number and the stamp that belongs to it, or neither."""
    number = optional_count(stream, body, key)
    if number is None:
        return None, None
    return number, stamp(stream, body.get(stamp_key))


def decode_time_request(frames: Sequence[Buffer]) -> TimeRequest:
    """Decode what a sender sent; raises MalformedMessage and nothing else."""
    stream = endpoints.TIME.stream
    if len(frames) != 1:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    body = _body(stream, frames[0])
    names = body.get("names", [])
    if not isinstance(names, list) or len(names) > MAX_NAMES:
        raise MalformedMessage(stream, "header_field", "names")
    request = TimeRequest(
        _name(stream, body.get("source"), "source"),
        tuple(_name(stream, name, "names") for name in names),
        *_pair(stream, body, "seq", "t0"),
        *_pair(stream, body, "answered", "t3"),
    )
    if request.seq is None and request.answered_seq is None:
        raise MalformedMessage(stream, "header_field", "neither seq nor answered")
    return request


def decode_time_reply(frames: Sequence[Buffer]) -> TimeReply:
    """Decode what the receiver answered; raises MalformedMessage and nothing else."""
    stream = endpoints.TIME.stream
    if len(frames) != 1:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    body = _body(stream, frames[0])
    seq = optional_count(stream, body, "seq")
    if seq is None:
        raise MalformedMessage(stream, "header_field", "seq")
    return TimeReply(seq, stamp(stream, body.get("t1")), stamp(stream, body.get("t2")))
