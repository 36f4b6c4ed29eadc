"""The protobuf messages of LeRobot's service `transport.AsyncInference`, and their parts.

The descriptors are built at run time in a pool of their own: LeRobot registers the same names in
the default pool, and both may be loaded into one process.

| message | fields |
| --- | --- |
| Empty | |
| PolicySetup | data = 1 bytes |
| Observation | transfer_state = 1 enum (UNKNOWN 0, BEGIN 1, MIDDLE 2, END 3), data = 2 bytes |
| Actions | data = 1 bytes |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from common.wire.checks import Buffer
from serving.messages import MAX_MESSAGE, BadMessage

__all__ = ["BEGIN", "END", "MIDDLE", "PART", "SERVICE", "Actions", "Assembly", "Empty"]
__all__ += ["Observation", "PolicySetup", "parts", "read_part"]

SERVICE = "transport.AsyncInference"
BEGIN, MIDDLE, END = 1, 2, 3
PART = 2 << 20
"""Bytes of one part of an observation, as LeRobot's clients cut them."""
MAX_PARTS = 1024
"""Parts of one message: 64 KiB each would still make the largest."""


# A tag is the field's number and what follows: a varint, or a length and so many bytes, or a value
# of fixed size (in fields that are none of ours).
_VARINT, _BYTES = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
_STATE_TAG, _DATA_TAG = 1 << 3 | _VARINT, 2 << 3 | _BYTES
_MOST_FIELDS = 16


def _build() -> Any:
    """A pool that knows the messages."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="dualrate/async_inference.proto", package="transport", syntax="proto3"
    )
    states = file.enum_type.add(name="TransferState")
    for number, name in enumerate(("UNKNOWN", "BEGIN", "MIDDLE", "END")):
        states.value.add(name=f"TRANSFER_{name}", number=number)
    for name in ("Empty", "PolicySetup", "Observation", "Actions"):
        message = file.message_type.add(name=name)
        if name == "Observation":
            message.field.add(
                name="transfer_state",
                number=1,
                type=field.TYPE_ENUM,
                type_name=".transport.TransferState",
                label=field.LABEL_OPTIONAL,
            )
        if name != "Empty":
            message.field.add(
                name="data",
                number=2 if name == "Observation" else 1,
                type=field.TYPE_BYTES,
                label=field.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"transport.{name}"))


_POOL = _build()
Empty: Any = _message("Empty")
PolicySetup: Any = _message("PolicySetup")
Observation: Any = _message("Observation")
Actions: Any = _message("Actions")


def parts(data: Buffer) -> Iterator[bytes]:
    """The parts in which `data` travels: BEGIN, MIDDLE …, END; END alone where one is enough.

    Each is a serialized `Observation`. They are written and read here, by the rules of the
    encoding, because the library copies what they hold into memory of its own and out of it again:
    that took 4 to 6 ms for 3 MiB, each way, against 0.1 ms.
    """
    view = memoryview(data)
    for start in range(0, max(len(view), 1), PART):
        part = view[start : start + PART]
        state = MIDDLE if start else BEGIN
        if start + PART >= len(view):
            state = END
        yield b"".join((bytes((_STATE_TAG, state, _DATA_TAG)), _varint(len(part)), part))


def read_part(message: bytes) -> tuple[int, memoryview]:
    """Transfer state and data of a serialized `Observation`; BadMessage for anything else.

    As the encoding asks, the last of several values of a field counts, one that is missing is zero
    or empty, and fields that are not known are passed over.
    """
    view, position, state, data = memoryview(message), 0, 0, memoryview(b"")
    for _ in range(_MOST_FIELDS):
        if position == len(view):
            return state, data
        tag, position = _read_varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if (wire_type not in _FIXED_SIZES and wire_type not in (_VARINT, _BYTES)) or not number:
            break
        length = _FIXED_SIZES.get(wire_type, 0)
        value = 0
        if wire_type in (_VARINT, _BYTES):
            value, position = _read_varint(view, position)
        if wire_type == _BYTES:
            length = value
        if position + length > len(view):
            break
        if tag == _STATE_TAG:
            state = value
        elif tag == _DATA_TAG:
            data = view[position : position + length]
        position += length
    raise BadMessage("not a part of an observation")


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at a position, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            break
        byte = view[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, position
    raise BadMessage("not a part of an observation")


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set in all but the last."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


class Assembly:
    """Puts the parts of one message together, within bounds and in order."""

    def __init__(self) -> None:
        self._parts: list[Buffer] = []
        self.size = 0

    def add(self, state: int, data: Buffer) -> bool:
        """Take the next part; True when it was the last. BadMessage for one out of order."""
        if state not in (BEGIN, MIDDLE, END):
            raise BadMessage(f"an unknown transfer state, {state}")
        if state == (BEGIN if self._parts else MIDDLE):
            raise BadMessage("the parts of an observation came in the wrong order")
        self.size += len(data)
        if self.size > MAX_MESSAGE or len(self._parts) >= MAX_PARTS:
            raise BadMessage(f"an observation over {MAX_MESSAGE >> 20} MiB, or in too many parts")
        self._parts.append(data)
        return state == END

    @property
    def data(self) -> bytes:
        """The whole message."""
        return b"".join(self._parts)
