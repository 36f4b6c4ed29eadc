"""The robot sender's loop: read, publish, log, and move the robot where that is accepted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import zmq

from common.clock import RateMeter, Tick, Ticker, wall
from common.program import Backoff, Every, ProgramError
from common.typed import RESUME
from common.wire import (
    MAX_MAGNITUDE,
    RobotCondition,
    RobotState,
    RobotStatus,
    encode_episode_end,
    encode_robot,
    encode_robot_status,
)
from senders.action_stream import ActionStream
from senders.drivers import (
    DriverError,
    RecordedRobot,
    RecordingOver,
    RobotDriver,
    RobotFault,
    RobotReading,
)
from senders.executor import ActionExecutor, Command
from senders.robot_log import RobotLog

__all__ = ["RobotSender"]

logger = logging.getLogger("senders.robot")

_CONDITION_EVERY_S = 1.0
# How long a stop waits for a robot that is being opened: homing takes longer than people wait.
_OPENED_IN_S = 3.0


class _Opening:
    """A robot that is being opened, in a thread of its own: homing one takes many seconds.

    Nothing else may call the driver until it is `over`.
    """

    def __init__(self, driver: RobotDriver) -> None:
        self._driver = driver
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._open, name="robot-open", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._driver.open()
        except BaseException as failure:
            self._failure = failure

    def over(self, wait_s: float | None) -> bool:
        """Whether the attempt has ended, waiting `wait_s` for that (None: as long as it takes)."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def result(self) -> None:
        """Raise what the attempt ended with, if anything."""
        if self._failure is not None:
            raise self._failure


class RobotSender:
    """The loop: read, publish, log and (where actions are accepted) move, once a tick."""

    def __init__(
        self,
        driver: RobotDriver,
        publisher: zmq.Socket[bytes],
        log: RobotLog,
        rate_hz: float,
        motion: tuple[ActionStream, ActionExecutor] | None = None,
        resumed: threading.Event | None = None,
    ) -> None:
        """Use `driver` one call at a time: `open` in threads of their own, the rest in `run`.

        `resumed` is set by whoever gives leave to go on after a stop or an error of the robot: to
        open it again gives its motors power, and may home it. Without it, no leave is needed.
        """
        self._driver, self._publisher, self._log = driver, publisher, log
        self._recorded = isinstance(driver, RecordedRobot)
        self._rate_hz = rate_hz
        self._resumed, self._stopped = resumed, ""
        self._actions = motion[0] if motion else None
        self._executor = motion[1] if motion else None
        self._connected = False
        self._opening: _Opening | None = None
        self._backoff = Backoff()
        self._rate = RateMeter()
        self._missed = 0
        self._errors: Counter[str] = Counter()
        self._last: RobotReading | None = None
        self._status = Every()
        self._refusals = Every(1.0)
        self._condition = RobotStatus("lost", wall(), "not connected yet")
        self._condition_due = Every(_CONDITION_EVERY_S)

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` or the end of a recording; then hold, let go, and end the episode."""
        self._send(encode_robot_status(self._condition))
        try:
            for tick in self._ticks(stop):
                self._missed += tick.skipped
                if self._status.due():
                    self._say_status()
                if self._condition_due.due():
                    self._say_condition()
                if self._connected or self._connect():
                    self._tick()
                else:
                    self._take_actions()  # refused, rather than kept for when it is back
        except RecordingOver:
            logger.info("the recording is over")
        finally:
            self._release()
            if self._last is not None:
                self._send(encode_episode_end())
            self._say_status()

    def _ticks(self, stop: threading.Event) -> Iterator[Tick]:
        """A clock's ticks; those of a recording, which is opened first, where the driver is one."""
        if not isinstance(self._driver, RecordedRobot):
            return Ticker(self._rate_hz).ticks(stop)
        try:
            self._driver.open()
        except DriverError as error:
            raise ProgramError(str(error)) from None
        self._connected = True
        return self._driver.ticks(stop)

    def _connect(self) -> bool:
        """Open the robot without waiting for it; whether it is open now."""
        if self._stopped and not self._take_leave():
            return False
        if self._opening is None:
            if not self._backoff.due:
                return False
            self._opening = _Opening(self._driver)
        # Nothing of a recording is left out while it is opened.
        if not self._opening.over(None if self._recorded else 0.0):
            return False
        opening, self._opening = self._opening, None
        try:
            opening.result()
        except DriverError as error:
            self._lost("open", error)
            return False
        logger.info("the robot is connected")
        self._connected = True
        return True

    def _take_leave(self) -> bool:
        """Whether somebody has said, since the robot was stopped, that it may go on."""
        assert self._resumed is not None
        if not self._resumed.is_set():
            return False
        logger.info("[ROBOT] released: %s; connecting to the robot again", self._stopped)
        self._stopped = ""
        self._backoff.worked()
        return True

    def _tick(self) -> None:
        try:
            reading = _sound(self._driver.read())
        except DriverError as error:
            self._lost("read", error)
            return
        self._backoff.worked()
        self._found("ok")
        self._publish(reading)
        if self._executor is not None:
            self._executor.observe(reading.joints_deg, reading.pose)
            self._take_actions()
            if (command := self._executor.step(time.monotonic())) is not None:
                self._obey(command, self._executor)

    def _take_actions(self) -> None:
        """Hand on the actions that came in; the executor refuses them while there is no robot."""
        if self._executor is None or self._actions is None:
            return
        for action, arrived_at in self._actions.poll():
            if reason := self._executor.accept(action, arrived_at):
                self._actions.refuse(reason)

    def _found(self, condition: RobotCondition, detail: str = "") -> None:
        """Say at once what is new of the robot's condition."""
        before = self._condition
        self._condition = RobotStatus(condition, wall(), detail)
        if (before.condition, before.detail) != (condition, detail):
            self._say_condition()

    def _say_condition(self) -> None:
        self._send(encode_robot_status(self._condition))

    def _send(self, frames: list[bytes]) -> None:
        """Publish; whatever goes wrong with that, the robot is still read and held."""
        try:
            self._publisher.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._errors["publish"] += 1
            if self._errors["publish"] == 1:
                logger.warning("robot: cannot publish: %s", error)

    def _publish(self, reading: RobotReading) -> None:
        if self._last is not None and reading.episode != self._last.episode:
            logger.info("the episode ended")
            self._send(encode_episode_end())
            if self._executor is not None:  # what was planned was for the episode before
                self._executor.begin_episode(time.monotonic())
        self._last = reading
        joints, pose = tuple(reading.joints_deg.tolist()), tuple(reading.pose.tolist())
        state = RobotState(reading.sampled_at, wall(), reading.force_n, joints, pose)
        self._send(encode_robot(state))
        self._rate.add()
        self._log.add(state)

    def _obey(self, command: Command, executor: ActionExecutor) -> None:
        try:
            if command.target is None:
                self._driver.hold()
                executor.held()
            elif command.kind == "joints":
                self._driver.move_joints(command.target)
            else:
                self._driver.move_pose(command.target)
        except DriverError as error:
            self._errors["move"] += 1
            if self._refusals.due() or self._errors["move"] == 1:
                logger.warning("the robot refused to %s: %s", command.kind, error)
            if command.target is not None:
                executor.hold(f"the robot refused: {error}", "robot")

    def _lost(self, doing: str, error: DriverError) -> None:
        """Nothing is published from here until the robot is back: no state rather than a stale."""
        self._errors[doing] += 1
        if isinstance(error, RobotFault) and self._resumed is not None:
            self._stopped = str(error)
            self._resumed.clear()  # what was said before was for something else
            self._found(error.condition, f"{error}; type {RESUME} here once it may go on")
            self._release()
            logger.warning("robot: stopped: %s; type %s once it is safe to go on", error, RESUME)
            return
        self._found(error.condition if isinstance(error, RobotFault) else "lost", str(error))
        self._release()
        delay_s = self._backoff.failed()
        logger.warning("robot: cannot %s: %s; next try in %.2g s", doing, error, delay_s)

    def _release(self) -> None:
        """Hold the robot where this program moves it, and let go of it."""
        opening, self._opening = self._opening, None
        if opening is not None and not opening.over(_OPENED_IN_S):
            logger.warning("robot: still being opened: its connection ends with this program")
            return
        steps = [self._driver.close]
        if self._executor is not None:
            self._executor.forget()
            if self._connected:
                steps.insert(0, self._driver.hold)
        self._connected = False
        for step in steps:
            try:
                step()
            except Exception as error:  # whatever goes wrong in one, the other must be done
                logger.warning("robot: %s: %s", step.__name__, error)

    def _say_status(self) -> None:
        parts = [f"{self._rate.rate_hz():.1f} Hz", f"sent {self._rate.total}"]
        parts.append(f"missed {self._missed}")
        if self._errors:
            parts.append("errors " + ", ".join(f"{k}:{n}" for k, n in self._errors.items()))
        if self._executor is not None and self._actions is not None:
            hold = self._executor.holding or "no"
            ignored = self._actions.refused.total
            parts.append(f"actions {self._executor.accepted}, ignored {ignored} (hold: {hold})")
            if not (self._executor.accepted or ignored):
                parts.append(f"no action yet from {self._actions.where}")
        if not self._connected:
            parts.append(f"not connected ({self._condition.condition})")
        elif self._last is not None:
            parts.append(f"J=[{', '.join(f'{j:.2f}' for j in self._last.joints_deg)}]")
        logger.info("[ROBOT] %s", " | ".join(parts))


def _sound(reading: RobotReading) -> RobotReading:
    """The reading, if every value in it is one; DriverError otherwise."""
    for values in (reading.joints_deg, reading.pose):
        if np.shape(values) != (6,) or not np.abs(values).max() <= MAX_MAGNITUDE:
            raise DriverError(f"not six sound values: {values}")
    if not abs(reading.force_n) <= MAX_MAGNITUDE:
        raise DriverError(f"not a force: {reading.force_n}")
    return reading
