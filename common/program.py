"""What programs do alike: options, log lines, a clean stop, waiting to try again."""

from __future__ import annotations

import logging
import logging.handlers
import math
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import zmq

from common import cli
from common.endpoints import address
from common.stopping import stopping

__all__ = ["Backoff", "Every", "OptionError", "Options", "ProgramError"]
__all__ += ["check_host", "check_number", "check_port", "open_socket", "parse", "resolve", "run"]

logger = logging.getLogger("program")

STATUS_EVERY_S = 5.0


class ProgramError(Exception):
    """Ends the program: one line for stderr, and the exit code (1: failed while running)."""

    code = 1


class OptionError(ProgramError):
    """An option that cannot be used; the line says what to do (exit code 2)."""

    code = 2


class Options(Protocol):
    """The options of one program: a dataclass that tyro fills."""

    @property
    def duration(self) -> float | None:
        """Seconds after which to stop by itself."""
        ...

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        ...


OptionsT = TypeVar("OptionsT", bound=Options)


def check_number(option: str, value: float, low: float, high: float) -> None:
    """Raise OptionError unless `value` is within [low, high]."""
    if not low <= value <= high:  # false for NaN too
        raise OptionError(f"{option} must be from {low:g} to {high:g}, not {value:g}")


def check_port(option: str, port: int) -> None:
    """Raise OptionError unless `port` is a TCP or UDP port."""
    check_number(option, port, 1, 65_535)


def check_duration(duration: float | None) -> None:
    """Raise OptionError unless the duration, where there is one, is above zero."""
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise OptionError(f"--duration must be seconds above 0, not {duration:g}")


def parse(options_type: type[OptionsT], argv: Sequence[str] | None) -> OptionsT:
    """Options from the command line; OptionError (one line) for one that cannot be used."""
    try:
        options = cli.read(options_type, argv)
    except cli.ConfigError as error:
        raise OptionError(str(error)) from None
    check_duration(options.duration)
    options.check()
    return options


def _start_logging() -> logging.handlers.QueueListener:
    """Write log lines from a thread of their own: a stuck terminal must not delay a clock."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers = [logging.handlers.QueueHandler(lines)]
    root.setLevel(logging.WARNING)
    for ours in ("common", "senders", "serving", "sim"):
        logging.getLogger(ours).setLevel(logging.INFO)
    listener = logging.handlers.QueueListener(lines, handler)
    listener.start()
    return listener


def run(
    options_type: type[OptionsT],
    body: Callable[[OptionsT, threading.Event], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the options, run `body` until it returns or a stop is asked for; the exit code.

    0 after a clean stop, 2 for a bad option, 1 for a failure while running.
    """
    prog = Path(sys.argv[0]).name
    listener = None
    try:
        options = parse(options_type, argv)
        listener = _start_logging()
        with stopping(options.duration) as stop:
            body(options, stop)
    except ProgramError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return error.code
    except Exception:
        logger.exception("%s: stopped by an error of its own", prog)
        return 1
    finally:
        if listener is not None:
            listener.stop()
    return 0


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Family and address for UDP; OptionError for a name that does not exist.

    Raises TimeoutError when names cannot be looked up now, e.g. while a network comes up.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise TimeoutError(f"{host!r} cannot be looked up now") from None
        raise OptionError(f"no such host: {host!r}; give a name or an IP address") from None
    except (UnicodeError, ValueError):
        raise OptionError(f"not a host: {host!r}; give a name or an IP address") from None
    # The receiver listens on IPv4 unless told otherwise, and `localhost` may name both.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, where = found[0]
    return family, where


def check_host(host: str, port: int) -> None:
    """Raise OptionError for a name that does not exist; one that may be there later is said."""
    try:
        resolve(host, port)
    except TimeoutError as error:
        logger.warning("%s; trying on", error)  # ZeroMQ looks it up again by itself


def open_socket(
    kind: int, host: str, port: int, options: Mapping[zmq.SocketOption, int], *, bind: bool
) -> zmq.Socket[bytes]:
    """A ZeroMQ socket, bound or connected; ProgramError (or OptionError) when it cannot be."""
    made: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    where = address(host, port)
    try:
        made.setsockopt(zmq.IPV6, int(":" in host))
        for option, value in options.items():
            made.setsockopt(option, value)
        (made.bind if bind else made.connect)(where)
    except zmq.ZMQError as error:
        made.close(0)
        if error.errno == zmq.EADDRINUSE:
            raise ProgramError(
                f"port {port} is in use: is another one running? --port picks another"
            ) from None
        raise OptionError(f"{where} cannot be used: {error.strerror}") from None
    return made


class Every:
    """True at most every so often, the first time after one period."""

    def __init__(self, period_s: float = STATUS_EVERY_S) -> None:
        """Be true every `period_s` seconds."""
        self._period_s = period_s
        self._next = time.monotonic() + period_s

    def due(self) -> bool:
        """Whether a period has passed since this last was true."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._period_s
        return True


class Backoff:
    """When to try a broken device again: soon at first, then ever less often."""

    def __init__(self, first_s: float = 0.25, last_s: float = 5.0) -> None:
        """Wait `first_s` seconds after a failure, then twice as long each time, up to `last_s`."""
        self._first_s, self._last_s = first_s, last_s
        self._delay_s = first_s
        self.retry_at = 0.0

    def failed(self) -> float:
        """Count one more failure; seconds until the next try."""
        delay, self._delay_s = self._delay_s, min(2 * self._delay_s, self._last_s)
        self.retry_at = time.monotonic() + delay
        return delay

    def worked(self) -> None:
        """Begin again with short delays."""
        self._delay_s = self._first_s

    @property
    def due(self) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self.retry_at
