"""Publishes a robot's state at a fixed rate and, when allowed to, moves it as the receiver says."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tyro
import zmq

from common import endpoints
from common.clock import RateMeter, Ticker, wall
from common.endpoints import address
from common.wire import MAX_MAGNITUDE, RobotState, encode_episode_end, encode_robot
from senders import registry, robots
from senders.action_stream import ActionStream
from senders.drivers import DriverError, RobotDriver, RobotReading
from senders.executor import ActionExecutor, Command
from senders.limits import MotionLimits
from senders.program import Backoff, Every, check_number, check_port, open_socket, run
from senders.robot_log import RobotLog

__all__ = ["RobotOptions", "RobotSender", "main"]

logger = logging.getLogger("senders.robot")

_LINGER_MS = 500


@dataclass(frozen=True)
class RobotOptions:
    """Publish a robot's state, 100 times a second; with --accept-actions, move the robot too."""

    robot: Literal["on", "off"] = "off"
    """Whether to use a robot; off uses none and sends nothing."""
    driver: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which robot: sim, synthetic, …; without it, the one whose package is installed."""
    driver_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Passed to the driver, e.g. host=192.168.0.100."""
    host_bind: str = "*"
    """Address of this machine to publish on; * is all of them."""
    port: int = endpoints.ROBOT.port
    """TCP port to publish on."""
    rate_hz: float = endpoints.ROBOT.rate_hz
    """States a second, and control ticks a second."""
    accept_actions: bool = False
    """Let the receiver move the robot."""
    action_host: str = "localhost"
    """Where the receiver runs."""
    action_port: int = endpoints.ACTION.port
    """TCP port on which it publishes actions."""
    action_hz: float = endpoints.ACTION.rate_hz
    """Actions a second to expect; three periods without one put the robot on hold."""
    speed_scale: float = 0.5
    """Fraction of the arm's top speeds that it may be moved with, above 0 and up to 1."""
    output_dir: Path = Path("dataset/Robot_Data")
    """Where the CSV file of the sampled states goes."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_port("--port", self.port)
        check_port("--action-port", self.action_port)
        check_number("--rate-hz", self.rate_hz, 1, 1000)
        check_number("--action-hz", self.action_hz, 0.1, 1000)
        check_number("--speed-scale", self.speed_scale, 0.001, 1)
        if self.robot == "on" or self.driver is not None:
            registry.choose(robots.DRIVERS, self.driver)


class RobotSender:
    """The loop: read, publish, log and (where actions are accepted) move, once a tick."""

    def __init__(
        self,
        driver: RobotDriver,
        publisher: zmq.Socket[bytes],
        log: RobotLog,
        rate_hz: float,
        motion: tuple[ActionStream, ActionExecutor] | None = None,
    ) -> None:
        """Use `driver` from the one thread that calls `run`; it is opened there."""
        self._driver, self._publisher, self._log = driver, publisher, log
        self._rate_hz = rate_hz
        self._actions = motion[0] if motion else None
        self._executor = motion[1] if motion else None
        self._connected = False
        self._backoff = Backoff()
        self._rate = RateMeter()
        self._missed = 0
        self._errors: Counter[str] = Counter()
        self._last: RobotReading | None = None
        self._status = Every()
        self._refusals = Every(1.0)

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop`; then hold the robot, let go of it, and end the episode."""
        try:
            for tick in Ticker(self._rate_hz).ticks(stop):
                self._missed += tick.skipped
                if self._status.due():
                    self._say_status()
                if self._connected or self._connect():
                    self._tick()
        finally:
            self._release()
            if self._last is not None:
                self._publisher.send_multipart(encode_episode_end())

    def _connect(self) -> bool:
        if not self._backoff.due:
            return False
        try:
            self._driver.open()
        except DriverError as error:
            self._lost("open", error)
            return False
        logger.info("the robot is connected")
        self._connected = True
        return True

    def _tick(self) -> None:
        try:
            reading = _sound(self._driver.read())
        except DriverError as error:
            self._lost("read", error)
            return
        self._backoff.worked()
        self._publish(reading)
        if self._executor is not None and self._actions is not None:
            self._executor.observe(reading.joints_deg, reading.pose)
            for action, arrived_at in self._actions.poll():
                if reason := self._executor.accept(action, arrived_at):
                    self._actions.refuse(reason)
            if (command := self._executor.step(time.monotonic())) is not None:
                self._obey(command, self._executor)

    def _publish(self, reading: RobotReading) -> None:
        if self._last is not None and reading.episode != self._last.episode:
            logger.info("the episode ended")
            self._publisher.send_multipart(encode_episode_end())
            if self._executor is not None:  # what was planned was for the episode before
                self._executor.forget()
        self._last = reading
        joints, pose = tuple(reading.joints_deg.tolist()), tuple(reading.pose.tolist())
        state = RobotState(reading.sampled_at, wall(), reading.force_n, joints, pose)
        self._publisher.send_multipart(encode_robot(state))
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
        self._release()
        delay_s = self._backoff.failed()
        logger.warning("robot: cannot %s: %s; next try in %.2g s", doing, error, delay_s)

    def _release(self) -> None:
        """Hold the robot where this program moves it, and let go of it."""
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
        if not self._connected:
            parts.append("not connected")
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


def _idle(stop: threading.Event) -> None:
    logger.info("[ROBOT] --robot off: no robot is used and nothing is sent; --robot on starts it")
    while not stop.wait(5.0):
        logger.info("[ROBOT] idle (--robot off)")


def send(options: RobotOptions, stop: threading.Event) -> None:
    """Run the sender until `stop`; raises SenderError when it cannot start."""
    if options.robot == "off":
        _idle(stop)
        return
    name = registry.choose(robots.DRIVERS, options.driver)
    driver: RobotDriver = registry.make(robots.DRIVERS, name, {}, options.driver_options)
    publishing = {zmq.SNDHWM: endpoints.ROBOT.hwm, zmq.LINGER: _LINGER_MS}
    publisher = open_socket(zmq.PUB, options.host_bind, options.port, publishing, bind=True)
    motion = None
    if options.accept_actions:
        limits = MotionLimits.of_arm(speed_scale=options.speed_scale)
        executor = ActionExecutor(limits, options.rate_hz, options.action_hz)
        motion = (ActionStream(options.action_host, options.action_port), executor)
        logger.info("[ROBOT] actions from %s:%d", options.action_host, options.action_port)
    log = RobotLog(options.output_dir)
    where = address(options.host_bind, options.port)
    logger.info("[ROBOT] driver %s, publishing on %s", name, where)
    logger.info("[ROBOT] writing %s", log.path)
    try:
        RobotSender(driver, publisher, log, options.rate_hz, motion).run(stop)
    finally:
        log.close()
        if motion is not None:
            motion[0].close()
        publisher.close()
        zmq.Context.instance().term()


def main() -> int:
    """Run from the command line; the exit code."""
    return run(RobotOptions, send)


if __name__ == "__main__":
    sys.exit(main())
