"""Shows the receiver's work in Rerun: starts the viewer process and tells it what happens.

Everything that costs time is done in the other process. A call of the tap only puts what it is
shown into a short queue, from which the oldest falls out; one thread sends from the queues over a
socket that drops when the viewer is slow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from common.clock import to_now
from receiver import rerun_wire

if TYPE_CHECKING:
    from receiver.actions import ActionRecord
    from receiver.inputs import StoredFrame, StoredState

__all__ = ["RerunError", "RerunOptions", "RerunSetup", "RerunTap"]

logger = logging.getLogger(__name__)

_START_S = 30
_STOP_S = 10.0
_FRAME_PERIOD_S = 0.1
# Lines that say what the curves show: the log is for what happens.
_NOT_SHOWN: tuple[str, ...] = ("[ACTION", "[VL Update", "--- Status", "VL Updates: ", "Actions: ")
_NOT_SHOWN += ("Images recv: ", "Sensor buffer: ", "Robot: ", "Recording: ")
_SEND_EVERY_S = 0.02
# Of parts of messages, of which there are two to four in one: some seconds of all streams.
_SOCKET_QUEUE = 1000
# What may wait to be sent, by stream: about a second of each.
_QUEUES = {"frames": 60, "states": 100, "samples": 70, "actions": 50, "lines": 200}


class RerunError(RuntimeError):
    """Rerun cannot be used as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class RerunOptions:
    """Where what happens is shown; all that are given are used together."""

    show: bool = False
    """Open Rerun's viewer on this machine's display."""
    save: Path | None = None
    """Write an .rrd file."""
    connect: str | None = None
    """Send to a viewer that runs, e.g. rerun+http://192.168.0.7:9876/proxy."""
    serve: int | None = None
    """Let viewers connect on this port of this machine."""

    @property
    def wanted(self) -> bool:
        """Whether any of them is given."""
        return self.show or bool(self.save or self.connect) or self.serve is not None


@dataclass(frozen=True)
class RerunSetup:
    """What the viewer should know of the run.

    Attributes:
        views: their names, in the order to show them in.
        columns: the names of an action's columns.
        space: what they mean.
        aline_length: values in an A-scan.
        title: shown above the log.
    """

    views: Sequence[str]
    columns: Sequence[str]
    space: str
    aline_length: int
    title: str = ""


class RerunTap:
    """A tap that shows everything in Rerun; `start` it before the streams' threads begin."""

    def __init__(self, options: RerunOptions, setup: RerunSetup) -> None:
        """RerunError with one line when Rerun is not installed or there is no display."""
        if importlib.util.find_spec("rerun_bindings") is None:
            raise RerunError("Rerun is not installed: pip install '.[rerun]'")
        displays = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if options.show and sys.platform == "linux" and not displays:
            raise RerunError(
                "no display for Rerun's viewer: use --rerun-save FILE.rrd, --rerun-serve PORT or "
                "--rerun-connect URL"
            )
        self._options, self._setup = options, setup
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._waiting: dict[str, deque[Any]] = {n: deque(maxlen=k) for n, k in _QUEUES.items()}
        self._stop = threading.Event()
        self._sender: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        self._closing = False
        self._due: dict[str, float] = {}
        # The newest times of each stream, for the ages at an action: single floats, written by the
        # stream's thread and read by the fast loop.
        self._newest: dict[str, float] = {}
        self.failed = 0
        self.handler: logging.Handler = _LineHandler(self)

    def start(self) -> None:
        """Start the viewer process and wait for it; RerunError with one line when it cannot."""
        self._folder = tempfile.mkdtemp(prefix="dualrate-")
        address = f"ipc://{self._folder}/viewer"
        options = {k: v for k, v in asdict(self._options).items() if v is not None}
        if self._options.save is not None:
            options["save"] = str(self._options.save.resolve())  # the viewer runs elsewhere
        wanted = {"address": address, "setup": asdict(self._setup), "options": options}
        try:
            self._start_process(json.dumps(wanted))
            sock = self._connect(address)
        except (OSError, RerunError) as error:
            self.close()
            raise error if isinstance(error, RerunError) else RerunError(str(error)) from None
        threading.Thread(target=self._listen, name="rerun viewer", daemon=True).start()
        self._sender = threading.Thread(target=self._send, args=(sock,), name="rerun", daemon=True)
        self._sender.start()

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        # XPUB is PUB that hears of its subscriber: from here on nothing is lost for want of one.
        sock = self._context.socket(zmq.XPUB)
        sock.setsockopt(zmq.SNDHWM, _SOCKET_QUEUE)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(address)
        if not sock.poll(1000 * _START_S):
            sock.close(linger=0)
            raise RerunError("Rerun cannot be used: its process does not listen")
        sock.recv()
        return sock

    def _start_process(self, wanted: str) -> None:
        # A session of its own: a Ctrl+C at the terminal is not for it. It ends when its standard
        # input does: when this process says so, or is no more.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "receiver.viewer", wanted],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        said, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline().decode(errors="replace").strip() if said else ""
        if line != "ready":
            why = line.removeprefix("error: ") or "its process did not begin"
            raise RerunError(f"Rerun cannot be used: {why}")

    def _listen(self) -> None:
        """Pass on what the viewer process says, and say when it ends."""
        process = self._process
        assert process is not None and process.stdout is not None
        for line in process.stdout:
            logger.warning("viewer: %s", line.decode(errors="replace").strip())
        if not self._closing:
            logger.warning("viewer: ended; the receiver goes on without it")

    def frame(self, view: str, stored: StoredFrame) -> None:
        """Show about ten pictures of a view a second."""
        self._newest[view] = stored.captured_at
        moment = time.monotonic()
        due = self._due.get(view, 0.0)
        if moment < due:
            return
        self._due[view] = max(due + _FRAME_PERIOD_S, moment)
        self._waiting["frames"].append((view, stored))

    def state(self, stored: StoredState) -> None:
        """Show a robot state."""
        self._newest["robot"] = stored.sampled_at
        self._waiting["states"].append(stored)

    def samples(self, datagram: memoryview, arrived_at: float) -> None:
        """Show the samples of a datagram."""
        self._newest["sensor"] = arrived_at
        self._waiting["samples"].append((arrived_at, bytes(datagram)))

    def action(self, record: ActionRecord) -> None:
        """Show an action."""
        self._waiting["actions"].append((record, self._newest.copy()))

    def line(self, at: float, level: int, text: str) -> None:
        """Show a line of text."""
        self._waiting["lines"].append((at, level, text))

    def _send(self, sock: zmq.Socket[bytes]) -> None:
        """Send what waits, until `close`."""
        makers: dict[str, Callable[[Any], list[Any]]] = {
            "frames": _frame_parts,
            "states": _state_parts,
            "samples": lambda item: rerun_wire.samples_parts(*item),
            "actions": _action_parts,
            "lines": lambda item: rerun_wire.line_parts(*item),
        }
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_SEND_EVERY_S)
            for name, waiting in self._waiting.items():
                while waiting:
                    try:
                        # A socket that publishes never waits: it drops what finds no room.
                        sock.send_multipart(makers[name](waiting.popleft()))
                    except Exception as error:
                        self._failed(error)
        sock.close(linger=1000)

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        if self.failed == 1:
            logger.warning("viewer: cannot be shown: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """End the viewer process, what is saved being whole; after the streams' threads ended."""
        self._closing = True
        self._stop.set()
        if self._sender is not None:
            self._sender.join(_STOP_S)
        self._context.destroy(linger=0)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _frame_parts(item: tuple[str, StoredFrame]) -> list[Any]:
    view, stored = item
    return rerun_wire.frame_parts(view, stored.captured_at, stored.arrived_at, stored.frame.jpeg)


def _state_parts(stored: StoredState) -> list[Any]:
    state = stored.state
    return rerun_wire.state_parts(
        stored.sampled_at, stored.arrived_at, state.force, state.joints, state.pose
    )


def _action_parts(item: tuple[ActionRecord, dict[str, float]]) -> list[Any]:
    record, newest = item
    numbers = {
        "number": float(record.number),
        "update": float(record.update.number),
        "use": float(record.feature_use),
        "inference_ms": 1e3 * record.inference_s,
        "lateness_ms": 1e3 * record.lateness_s,
        "feature_age_ms": 1e3 * record.feature_age_s,
        "update_ms": 1e3 * (record.update.ready_at - record.update.started_at),
    }
    ages_ms = {name: 1e3 * (record.at - at) for name, at in newest.items()}
    cut, task = sorted(record.cut), record.update.task
    return rerun_wire.action_parts(record.at, task, record.actions, numbers, ages_ms, cut)


class _LineHandler(logging.Handler):
    """Shows what the receiver says, the lines that the view has in another form aside."""

    def __init__(self, tap: RerunTap) -> None:
        super().__init__(logging.INFO)
        self._tap = tap

    def emit(self, record: logging.LogRecord) -> None:
        """Show one line; logging calls it from one thread at a time."""
        with contextlib.suppress(Exception):
            text = record.getMessage()
            if not text.startswith(_NOT_SHOWN):
                self._tap.line(to_now(time.monotonic()), record.levelno, text)
