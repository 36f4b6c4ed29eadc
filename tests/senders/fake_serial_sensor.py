"""A force sensor at the other end of a pseudo-terminal, which can be pulled out and put back."""

from __future__ import annotations

import os
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path


class FakeSerialSensor:
    """Writes `record(n)` for n = 0, 1, … at absolute deadlines, `burst` of them at a time."""

    def __init__(
        self,
        path: Path,
        record: Callable[[int], bytes],
        rate_hz: float = 650.0,
        burst: int = 1,
        start_on: bytes = b"",
    ) -> None:
        """Be found at `path`, a link; begin when told `start_on`, at once when that is empty."""
        self._path, self._record = path, record
        self._rate_hz, self._burst, self._start_on = rate_hz, burst, start_on
        self.heard = b""
        self.sent = 0
        self.sent_at: list[float] = []
        self._pulled = threading.Event()
        self._thread: threading.Thread | None = None
        self.plug()

    def plug(self) -> None:
        """Appear as a new terminal under the same path."""
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        fresh = self._path.with_suffix(".new")
        fresh.symlink_to(os.ttyname(self._slave))
        fresh.replace(self._path)
        self.heard = b""
        self._pulled.clear()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Vanish: whoever has the terminal open gets an error."""
        self._pulled.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None
            self._path.unlink()
            os.close(self._slave)
            os.close(self._master)

    def write(self, data: bytes) -> None:
        """Say something out of turn; what nobody takes is lost, as on a wire."""
        try:
            os.write(self._master, data)
        except BlockingIOError:
            pass

    def _listen(self) -> None:
        try:
            self.heard += os.read(self._master, 4096)
        except BlockingIOError:
            pass

    def _play(self) -> None:
        while self._start_on not in self.heard:
            if self._pulled.wait(0.01):
                return
            self._listen()
        begun, count = time.monotonic(), 0
        while True:
            count += self._burst
            if self._pulled.wait(max(begun + count / self._rate_hz - time.monotonic(), 0)):
                return
            self._listen()
            data = b"".join(self._record(self.sent + n) for n in range(self._burst))
            self.sent_at += [time.time()] * self._burst
            self.write(data)
            self.sent += self._burst
