"""Serial ports: finding the only one, commands as bytes, errors as one line that helps."""

from __future__ import annotations

import codecs
import errno

from serial.tools import list_ports

from senders.drivers import DriverError

__all__ = ["bytes_of", "find_port", "one_line", "text_of"]


def find_port() -> str:
    """The path of the only USB serial adapter; DriverError when there is none or several."""
    found = sorted(
        (port.device, port.description) for port in list_ports.comports() if port.vid is not None
    )
    if len(found) == 1:
        return str(found[0][0])
    if not found:
        raise DriverError("port=auto: no USB serial adapter is attached; plug it in or name a port")
    named = ", ".join(f"{device} ({description})" for device, description in found)
    raise DriverError(f"port=auto: several USB serial adapters, name one with port=: {named}")


def bytes_of(text: str) -> bytes:
    r"""A command as bytes: text with escapes as in Python (`\r\n`, `\x02`), or `hex:` and digits.

    ValueError when it is neither.
    """
    if text.startswith("hex:"):
        try:
            return bytes.fromhex(text[4:])
        except ValueError:
            raise ValueError(f"{text[4:]!r} is not hexadecimal, two digits a byte") from None
    return text_of(text).encode("latin-1", "replace")


def text_of(text: str) -> str:
    r"""Text with its escapes (`\t`, `\x02`) replaced; ValueError for a broken one."""
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError:
        raise ValueError(f"{text!r} has a broken escape; a backslash is written twice") from None


def one_line(port: str, error: Exception) -> str:
    """What is wrong with a port and, where that is known, what to do."""
    said = " ".join(str(error).split())
    number = getattr(error, "errno", None)
    hint = ""
    if isinstance(error, PermissionError) or number == errno.EACCES:
        hint = "; add yourself to the group that owns it (often dialout) and log in again"
    elif number == errno.EAGAIN:
        hint = "; another program has it open"
    return f"{said if port in said else f'{port}: {said}'}{hint}"
