"""The viewer process: takes what the receiver tells and logs it to Rerun. Started by RerunTap.

It says "ready" or "error: …" on standard output, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import zmq

from receiver.rerun_tap import RerunOptions, RerunSetup

if TYPE_CHECKING:
    import rerun as rr

__all__ = ["main"]

_NICE = 10
_POLL_MS = 200
_DRAIN_S = 3.0
_SAY_EVERY_S = 10.0
_FLUSH_S = 5.0
_ANSWER_S = 2.0
_RERUN_PORT = 9876
_MEMORY = "2GB"
_SERVER_MEMORY = "512MB"


def main() -> int:
    """Show what comes until standard input ends; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        # The receiver may run before other programs; what it starts would too.
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    wanted = json.loads(sys.argv[1])
    options, setup = _options(wanted["options"]), RerunSetup(**wanted["setup"])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.SUB)
    try:
        sock.setsockopt(zmq.RCVHWM, 200)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SUBSCRIBE, b"")
        sock.bind(wanted["address"])
        recording = _open(options, setup)
    except Exception as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 1
    _say("ready")
    if options.connect and not _answers(options.connect):
        _say(f"nothing answers at {options.connect}; is a viewer running there?")
    _run(sock, recording, setup)
    with contextlib.suppress(RuntimeError):  # a viewer that does not answer any more
        recording.flush(timeout_sec=_FLUSH_S)
    recording.disconnect()
    sock.close(linger=0)
    context.term()
    return 0


def _options(given: dict[str, Any]) -> RerunOptions:
    save = given.pop("save", None)
    return RerunOptions(**given, save=Path(save) if save else None)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode())


def _open(options: RerunOptions, setup: RerunSetup) -> rr.RecordingStream:
    """A recording that goes everywhere it is wanted."""
    import rerun as rr

    from receiver.rerun_layout import layout

    recording = rr.RecordingStream("dualrate")
    sinks: list[Any] = []
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.open("wb").close()  # OSError now, with a reason, rather than later without
        sinks.append(rr.FileSink(options.save))
    if options.connect:
        sinks.append(rr.GrpcSink(options.connect))
    if options.serve is not None:
        with socket.socket() as probe:  # Rerun itself says nothing of a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", options.serve))
            except (OSError, OverflowError) as error:
                raise OSError(f"port {options.serve} to serve on: {error}") from None
        server = rr.GrpcServerSink("127.0.0.1", options.serve, server_memory_limit=_SERVER_MEMORY)
        sinks.append(server)
    if options.show:
        # It comes with the package; without an active environment it is not on the PATH.
        installed = Path(sys.executable).with_name("rerun")
        rr.spawn(
            connect=False,
            recording=recording,
            memory_limit=_MEMORY,
            server_memory_limit=_SERVER_MEMORY,
            executable_path=str(installed) if installed.exists() else None,
        )
        sinks.append(rr.GrpcSink())
    recording.set_sinks(*sinks, default_blueprint=layout(setup.views))
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    return recording


def _answers(url: str) -> bool:
    """Whether something listens where a viewer should."""
    where = urlsplit(url)
    with contextlib.suppress(OSError, ValueError):
        place = (where.hostname or "127.0.0.1", where.port or _RERUN_PORT)
        socket.create_connection(place, timeout=_ANSWER_S).close()
        return True
    return False


def _run(sock: zmq.Socket[bytes], recording: rr.RecordingStream, setup: RerunSetup) -> None:
    """Log messages until standard input ends, and then those that are still there."""
    from receiver.rerun_log import RerunLog

    log = RerunLog(recording, setup)
    poller = zmq.Poller()
    poller.register(sock, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    told, said_at = 0, time.monotonic()
    while True:
        ready = dict(poller.poll(_POLL_MS))
        if sock in ready:
            log.take(sock.recv_multipart())
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            break
        if log.broken > told and time.monotonic() > said_at + _SAY_EVERY_S:
            told, said_at = log.broken, time.monotonic()
            _say(f"{told} messages could not be shown so far")
    deadline = time.monotonic() + _DRAIN_S
    while sock.poll(_POLL_MS) and time.monotonic() < deadline:
        log.take(sock.recv_multipart())


if __name__ == "__main__":
    sys.exit(main())
