"""Builds the receiver from its options, runs its threads, and stops them in order."""

from __future__ import annotations

import gc
import logging
import threading
import time
from dataclasses import dataclass, field

import zmq

from common.clock import Ticker
from common.counters import MalformedCounters
from policies.base import DualRatePolicy
from receiver.actions import ActionLoop
from receiver.commands import ActionPublisher, Guard
from receiver.console import Console
from receiver.episodes import Episodes
from receiver.features import FeatureLoop
from receiver.inputs import CameraInput, RobotInput, SensorInput
from receiver.memory import rss_mb
from receiver.observation import Observer
from receiver.options import ReceiverOptions
from receiver.results import ResultsWriter
from receiver.threads import Latest, Worker

__all__ = ["AtStart", "Runtime"]

logger = logging.getLogger(__name__)

_JOIN_S = 10.0


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
        policy: DualRatePolicy,
        results: ResultsWriter,
        console: Console,
        stop: threading.Event | None = None,
    ) -> None:
        """Open every socket; InputError with one line when one cannot be."""
        self.options, self.policy = options, policy
        self.console, self.results = console, results
        self.counters = MalformedCounters()
        self.episodes = Episodes()
        self.task: Latest[str] = Latest(options.task)
        self.at_start = AtStart()
        self.failure: str | None = None
        self.stop = stop or threading.Event()
        self._stop_writing = threading.Event()
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._build()

    def _build(self) -> None:
        options, spec, ports = self.options, self.policy.spec, self.options.ports
        window, stale = spec.sensor_window, options.stale_after
        self.cameras = CameraInput(
            self._context, options.bind, ports.camera, spec.views, options.views, self.counters
        )
        self.robot = RobotInput(
            self._context, options.robot_ip, ports.robot, self.episodes, self.counters
        )
        self.sensor = SensorInput(
            options.bind,
            ports.sensor,
            window,
            options.aline_length,
            options.sensor_hz,
            stale.sensor_s,
            self.counters,
        )
        publisher = ActionPublisher(self._context, options.bind, ports.action)
        self.observer = Observer(self.cameras, self.robot, self.sensor, window)
        grid = Ticker(options.action_hz)
        self.features = FeatureLoop(
            self.policy,
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
            options.limits,
            publisher,
            grid,
            options.vl_reuse,
            options.robot_required,
            self.results.record,
        )
        works = {
            "cameras": self.cameras.run,
            "robot": self.robot.run,
            "sensor": self.sensor.run,
            "features": self.features.run,
            "actions": self.actions.run,
        }
        self._workers = [
            Worker(name, lambda work=work: work(self.stop), self._failed)  # type: ignore[misc]
            for name, work in works.items()
        ]
        self._writer = Worker("results", lambda: self.results.run(self._stop_writing), self._failed)

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
        # What exists now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._writer.start()
        for worker in self._workers:
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
        self.at_start = AtStart(
            updates=self.features.durations.count,
            frames={view: s.meter.total for view, s in self.cameras.views.items()},
            robot_states=self.robot.meter.total,
            samples=self.sensor.meter.total,
            rss_mb=rss_mb(),
        )
        logger.info("inference started")

    def close(self) -> None:
        """Stop the loops and inputs, then write what is still to be written."""
        self.stop.set()
        self._ended_at = self._ended_at or time.monotonic()
        for worker in self._workers:
            worker.join(_JOIN_S)
        self._stop_writing.set()
        if self._writer.ident is not None:
            self._writer.join(_JOIN_S)
        hung = [w.name for w in self._workers if w.is_alive()]
        if hung:
            logger.error("did not stop in %g s: %s", _JOIN_S, ", ".join(hung))
        else:
            self._context.term()

    def _failed(self, message: str) -> None:
        self.failure = self.failure or message
        self.stop.set()
