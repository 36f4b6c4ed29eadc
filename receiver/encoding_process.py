"""The receiver's end of the encoding process: started, asked, watched, started again."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import endpoints
from common.stopping import die_with_parent
from common.wire import Buffer, MalformedMessage
from policies.base import Features, PolicyError, PolicySpec
from receiver.encoders import EncoderError
from receiver.encoding_wire import Gone, receive, send, spec_of
from receiver.loading import CannotRun, PolicyOptions

__all__ = ["EncodingProcess"]

logger = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("encoding_worker.py")
_LOADED_IN_S = 300.0  # a backbone of gigabytes from a slow disk
_HUNG_AFTER_S = 30.0
_ENDS_IN_S = 2.0
_POLL_S = 0.1


def _end_with_parent() -> None:
    die_with_parent(signal.SIGKILL)


class EncodingProcess:
    """The slow half in a process of its own, which has a lock of Python's to itself.

    A process that dies or hangs costs one update: it is started again, and until it answers the
    features grow old, which puts the output on hold. What is started again must be the very policy
    that was there before: features of another checkpoint mean nothing to the fast half that acts.
    """

    where = "process"

    def __init__(self, options: PolicyOptions, hung_after_s: float = _HUNG_AFTER_S) -> None:
        """Start the process; it loads the policy while the caller goes on. Then `wait_ready`."""
        self._options, self._hung_after_s = options, hung_after_s
        self.unpack: Callable[[bytes], Features] | None = None
        """The policy's own; without it features stay bytes."""
        self._closing = threading.Event()
        self._lock = threading.Lock()  # for who starts it and who ends it
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._identity: tuple[PolicySpec, bytes] | None = None
        self.restarts = 0
        self.cpu_s = 0.0
        self._connection = self._start()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._closing.is_set():
                ours.close()
                raise EncoderError("stopped")
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl+C is for the receiver, which then ends this
                preexec_fn=_end_with_parent,  # noqa: PLW1509  it allocates nothing, takes no lock
            )
        # To it a picture is more than the socket holds, from it features may be: neither waits for
        # ever for a process that was stopped in between.
        patience = struct.pack("ll", math.ceil(self._hung_after_s), 0)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, patience)
        connection = Connection(ours.detach())
        with contextlib.suppress(Gone):
            send(connection, {"policy": asdict(self._options)})
        return connection

    def wait_ready(self) -> PolicySpec:
        """Wait until the policy is loaded, and say what it is; PolicyError when it cannot be."""
        try:
            said = self._hear(_LOADED_IN_S)
        except EncoderError as error:
            raise PolicyError(f"the encoding process did not start: {error}") from None
        if "cannot_run" in said:
            raise CannotRun(str(said["cannot_run"]))
        if "spec" not in said:
            raise PolicyError(str(said.get("error", "the encoding process said nothing of use")))
        identity = spec_of(said["spec"]), bytes(said["black"])
        if self._identity not in (None, identity):
            raise PolicyError(
                "the checkpoint is no longer the one that the fast half was loaded from: "
                "start the receiver again"
            )
        self._identity, self._ready = identity, True
        return identity[0]

    def encode(self, jpegs: Mapping[str, Buffer], task: str) -> Features:
        """Let the process run one pass and wait for it, without Python's lock."""
        if not self._ready:
            self._restart()
        try:
            send(self._connection, {"jpegs": dict(jpegs), "task": task})
            said = self._hear(self._hung_after_s)
        except Gone:
            self._ready = False
            raise EncoderError(self._end_of_it()) from None
        except EncoderError:
            self._ready = False
            raise
        if "malformed" in said:
            raise MalformedMessage(endpoints.CAMERA.stream, "undecodable", str(said["malformed"]))
        if "features" not in said:
            raise EncoderError(str(said.get("failed", "no answer of use")))
        self.cpu_s += float(said["cpu_s"])
        data: bytes = said["features"]
        return data if self.unpack is None else self.unpack(data)

    def _hear(self, within_s: float) -> dict[str, Any]:
        """The next message; EncoderError when there will be none."""
        deadline = time.monotonic() + within_s
        try:
            while not self._connection.poll(_POLL_S):
                if self._closing.is_set():
                    raise EncoderError("stopped")
                if time.monotonic() > deadline:
                    raise EncoderError(f"no answer within {within_s:g} s")
            return receive(self._connection)
        except (Gone, OSError):
            raise EncoderError(self._end_of_it()) from None

    def _end_of_it(self) -> str:
        """Why nothing can be said to it, or heard from it, any more."""
        process = self._process
        if process is None:
            return "it ended"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"it ended with code {process.wait(_ENDS_IN_S)}"
        return f"it hangs in the middle of a message for {self._hung_after_s:g} s"

    def _restart(self) -> None:
        if self._closing.is_set():
            raise EncoderError("stopped")
        logger.warning("starting the encoding process again")
        self.restarts += 1
        self._end()
        self._connection = self._start()
        try:
            self.wait_ready()
        except PolicyError as error:
            raise EncoderError(str(error)) from None

    def figures(self) -> dict[str, object]:
        """Where it runs, its processor time, how often it had to be started again."""
        return {"where": self.where, "cpu_s": round(self.cpu_s, 3), "restarts": self.restarts}

    def close(self) -> None:
        """End the process; a pass in another thread ends with an EncoderError."""
        self._closing.set()
        self._end()

    def _end(self) -> None:
        with self._lock:
            process = self._process
            if process is None:
                return
            # It notices the closed connection between two passes only, and holds nothing to lose.
            process.kill()
            process.wait()
            self._process = None
