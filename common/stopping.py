"""How a program is asked to stop: Ctrl+C, SIGTERM, or its time is up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

__all__ = ["die_with_parent", "stopping"]

_IMPATIENT_S = 3.0
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(number: int) -> None:
    """Ask the kernel (Linux) to send this process a signal when the one that started it is gone.

    To be called by the child; elsewhere it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def stopping(duration_s: float | None = None) -> Iterator[threading.Event]:
    """An event that is set by Ctrl+C, by SIGTERM and, where given, after `duration_s`.

    Asked a second time, more than 3 s later, the program ends at once with code 130. To be used in
    the main thread, by a program that only leaves afterwards: from then on the signals are ignored.
    The handlers do nothing: Python's own wake-up byte reaches a thread that sets the event. Set
    from a handler, it could deadlock with the main thread inside that event's wait.
    """
    stop = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        since = 0.0
        while reader.recv(1):
            if stop.is_set() and time.monotonic() - since > _IMPATIENT_S:
                os._exit(130)  # asked again, and something does not let go
            since = since or time.monotonic()
            stop.set()

    threading.Thread(target=watch, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    timer = threading.Timer(duration_s or 0.0, stop.set)
    timer.daemon = True
    if duration_s is not None:
        timer.start()
    try:
        yield stop
    finally:
        timer.cancel()
        # Python takes its handlers away as it leaves: a late signal would then end a program that
        # stopped cleanly with the signal's code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
