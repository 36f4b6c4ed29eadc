"""Builds the receiver from its options, runs its threads, and stops them in order."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from common import endpoints
from common.clock import Ticker
from common.clock_offset import ClockOffset
from common.counters import MalformedCounters
from policies.base import ActingPolicy
from receiver.actions import ActionLoop, ActionRecord
from receiver.commands import ActionPublisher, Guard
from receiver.console import Console
from receiver.encoders import Encoder
from receiver.episodes import Episodes
from receiver.features import FeatureLoop
from receiver.folders import SessionFolders
from receiver.inputs import CameraInput, InputError, RobotInput, SensorInput
from receiver.latch import Latch
from receiver.memory import rss_mb
from receiver.observation import Observer
from receiver.options import ReceiverOptions
from receiver.recorder import Recorder
from receiver.rerun_tap import RerunOptions, RerunSetup, RerunTap
from receiver.results import ResultsWriter
from receiver.taps import Tap
from receiver.threads import Latest, Worker
from receiver.time_exchange import TimeServer
from receiver.views import view_of

__all__ = ["AtStart", "Runtime"]

logger = logging.getLogger(__name__)

_JOIN_S = 10.0
_WRITE_S = 60.0  # what waits to be written, up to 100 MB, must reach a slow disk


@dataclass(slots=True)
class AtStart:
    """The counts when inference started: rates are taken from there."""

    updates: int = 0
    frames: dict[str, int] = field(default_factory=dict)
    robot_states: int = 0
    samples: int = 0
    rss_mb: float | None = None


class Runtime:
    """The parts of a running receiver and the order they start and stop in."""

    def __init__(
        self,
        options: ReceiverOptions,
        policy: ActingPolicy,
        encoder: Encoder,
        folders: SessionFolders,
        console: Console,
        stop: threading.Event | None = None,
    ) -> None:
        """Open every socket; InputError (or RerunError) with one line when one cannot be.

        `policy` acts on what `encoder`, the slow half of the same policy, makes of pictures.
        """
        self.options, self.policy, self.encoder = options, policy, encoder
        self.console, self.folders = console, folders
        self.counters = MalformedCounters()
        self.episodes = Episodes()
        self.results = ResultsWriter(folders)
        self.recorder = Recorder(
            folders,
            self.episodes,
            options.recording,
            options.aline_length,
            self._description,
            self._catch_up,
        )
        self._taps: list[Tap] = [self.recorder]
        self._viewer = self._started_viewer()
        # What exists now stays: the collector need not look at it again and again. This and the
        # viewer take their time, which must not pass while messages wait in open sockets.
        gc.collect()
        gc.freeze()
        self.task: Latest[str] = Latest(options.task)
        self.note: Latest[str] = Latest()
        self.resumed: Latest[str] = Latest()
        self.at_start = AtStart()
        self.failure: str | None = None
        self.stop = stop or threading.Event()
        self._stop_writing = threading.Event()
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._build()
        except BaseException:
            self._context.destroy(linger=0)
            if self._viewer:
                self._viewer.close()
            raise

    def _started_viewer(self) -> RerunTap | None:
        options, spec = self.options, self.policy.spec
        wanted = RerunOptions(
            options.rerun, options.rerun_save, options.rerun_connect, options.rerun_serve
        )
        if not wanted.wanted:
            return None
        title = f"{spec.name} on {spec.device}"
        setup = RerunSetup(spec.views, spec.columns, spec.space, options.aline_length, title)
        viewer = RerunTap(wanted, setup)
        viewer.start()
        self._taps.append(viewer)
        self.console.also(viewer.handler)
        return viewer

    def _build(self) -> None:
        options, spec, ports = self.options, self.policy.spec, self.options.ports
        window, stale = spec.sensor_window, options.stale_after
        self.cameras = CameraInput(
            self._context,
            options.bind,
            ports.camera,
            spec.views,
            options.views,
            self.counters,
            self._taps,
        )
        self.sensor = SensorInput(
            options.bind,
            ports.sensor,
            window,
            options.aline_length,
            options.sensor_hz,
            stale.sensor_s,
            self.counters,
            self._taps,
        )
        self.robot = RobotInput(
            self._context,
            options.robot_ip,
            ports.robot,
            self.episodes,
            self.counters,
            self._taps,
            beside=(self.cameras, self.sensor),
        )
        publisher = ActionPublisher(self._context, options.bind, ports.action)
        self.time = self._time_server()
        self.observer = Observer(self.cameras, self.robot, self.sensor, window)
        grid = Ticker(options.action_hz)
        self.features = FeatureLoop(
            spec,
            self.encoder,
            self.observer,
            self.episodes,
            grid,
            options.vl_reuse,
            self.task,
            stale.view_s,
            self.counters,
        )
        self.actions = ActionLoop(
            self.policy,
            self.observer,
            self.features.newest,
            self.episodes,
            Guard(spec, stale, options.limits, options.robot_required),
            Latch(options.latch, self.resumed),
            options.limits,
            publisher,
            grid,
            options.vl_reuse,
            options.robot_required,
            self._record,
        )
        works = {
            "cameras": self.cameras.run,
            "robot": self.robot.run,
            "sensor": self.sensor.run,
            "features": self.features.run,
            "actions": self.actions.run,
        }
        if self.time is not None:
            works["time"] = self.time.run
        self._workers = [
            Worker(name, lambda work=work: work(self.stop), self._failed)  # type: ignore[misc]
            for name, work in works.items()
        ]
        recorder = self.recorder
        writing = {
            "results": (self.results.run, self._failed),
            "record-frames": (recorder.write_frames, recorder.broken),
            "record-rows": (recorder.write_rows, recorder.broken),
        }
        self._writers = [
            Worker(name, lambda work=work: work(self._stop_writing), failed)  # type: ignore[misc]
            for name, (work, failed) in writing.items()
        ]

    def _time_server(self) -> TimeServer | None:
        """Where senders ask for the time; clocks are known one-way where it cannot be opened."""
        port = self.options.ports.time
        if not port:
            return None
        try:
            return TimeServer(
                self._context, self.options.bind, port, self._clocks_of, self.counters
            )
        except InputError as error:
            logger.warning("%s: clocks are estimated one-way (--ports.time)", error)
            return None

    def _clocks_of(self, source: str, names: Sequence[str]) -> Sequence[ClockOffset]:
        """The clocks that a sender stamps by."""
        if source == endpoints.ROBOT.stream:
            return [self.robot.clock]
        if source == endpoints.SENSOR.stream:
            return [self.sensor.clock]
        views = (view_of(name, self.options.views, self.cameras.views) for name in names)
        return [self.cameras.views[view].clock for view in views if view in self.cameras.views]

    @property
    def started(self) -> bool:
        """Whether inference has started."""
        return self._started_at is not None

    @property
    def inference_s(self) -> float:
        """Seconds since inference started, up to the stop."""
        if self._started_at is None:
            return 0.0
        return (self._ended_at or time.monotonic()) - self._started_at

    def start(self) -> None:
        """Start every thread."""
        if self.options.save_data:
            self.recorder.start()
        for worker in (*self._writers, *self._workers):
            worker.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the run's end for up to `timeout_s`; True once it is over or to be stopped."""
        if self._started_at is None:
            if self.actions.started.wait(0.0):
                self._note_start()
        elif self.options.duration is not None:
            left = self.options.duration - self.inference_s
            if left <= 0:
                self.stop.set()
            timeout_s = min(timeout_s, max(left, 0.0))
        return self.stop.wait(timeout_s)

    def _note_start(self) -> None:
        self._started_at = time.monotonic()
        self._catch_up()  # what came before is not counted as having come since
        self.at_start = AtStart(
            updates=self.features.durations.count,
            frames={view: s.meter.total for view, s in self.cameras.views.items()},
            robot_states=self.robot.meter.total,
            samples=self.sensor.meter.total,
            rss_mb=rss_mb(),
        )
        logger.info("inference started")

    def _catch_up(self) -> None:
        for stream in (self.cameras, self.robot, self.sensor):
            stream.catch_up()

    def close(self) -> None:
        """Stop the loops and inputs, then write what is still to be written."""
        self.stop.set()
        self._ended_at = self._ended_at or time.monotonic()
        self.encoder.close()  # a pass under way is not waited for
        for worker in self._workers:
            worker.join(_JOIN_S)
        self._stop_writing.set()
        for writer in self._writers:
            writer.join(_WRITE_S)
        if self._viewer:
            self._viewer.close()
        hung = [w.name for w in (*self._workers, *self._writers) if w.is_alive()]
        if hung:
            logger.error("did not stop in time: %s", ", ".join(hung))
        else:
            self._context.term()

    def _record(self, record: ActionRecord) -> None:
        self.results.record(record)
        for tap in self._taps:
            tap.action(record)

    def _description(self) -> dict[str, Any]:
        """What a recording is to say of the receiver."""
        options, spec = self.options, self.policy.spec
        clocks = {"robot": self.robot.clock, "sensor": self.sensor.clock}
        clocks |= {f"camera/{view}": s.clock for view, s in self.cameras.views.items()}
        return {
            "task": self.task.get() or spec.task,
            "policy": spec.name,
            "views": list(spec.views),
            "cameras": {
                view: frame.frame.camera
                for view, stream in self.cameras.views.items()
                if (frame := stream.newest.get())
            },
            "sensor_hz": options.sensor_hz,
            "aline_length": options.aline_length,
            "action_hz": options.action_hz,
            "vl_reuse": options.vl_reuse,
            "space": spec.space,
            "columns": list(spec.columns),
            "dt": spec.dt,
            "clock_offset_s": {name: clock.offset_s for name, clock in clocks.items()},
        }

    def _failed(self, message: str) -> None:
        self.failure = self.failure or message
        self.stop.set()
