"""Publishes a robot's state at a fixed rate and, when allowed to, moves it as the receiver says."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import tyro
import zmq

from common import endpoints
from common.endpoints import address
from common.program import check_host, check_number, check_port, open_socket, run
from common.typed import listen_for_leave
from senders import registry, robots
from senders.action_stream import ActionStream
from senders.drivers import Recorded, RobotDriver
from senders.executor import ActionExecutor
from senders.limits import MotionLimits
from senders.robot_log import RobotLog
from senders.robot_loop import RobotSender
from senders.time_exchange import exchanging_time

__all__ = ["RobotOptions", "RobotSender", "main"]

logger = logging.getLogger("senders.robot")

_LINGER_MS = 500
_RECORDED_HWM = 1000


@dataclass(frozen=True)
class RobotOptions:
    """Publish a robot's state, 100 times a second; with --accept-actions, move the robot too."""

    robot: Literal["on", "off"] = "off"
    """Whether to use a robot; off uses none and sends nothing."""
    driver: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which robot: meca500, sim, synthetic, …; without it, the one whose package is installed."""
    driver_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Passed to the driver, e.g. address=192.168.0.100."""
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
    time_port: int = endpoints.TIME.port
    """TCP port on which the receiver (--action-host) exchanges timestamps; 0 does not ask it."""
    latch_stops: bool = True
    """After an emergency stop or an error of a robot that is moved, leave it alone until `resume`
    is typed; otherwise give it power again, and home it, as soon as it lets that be done."""
    speed_scale: float = 0.5
    """Fraction of the arm's top speeds that it may be moved with, above 0 and up to 1."""
    output_dir: Path = Path("dataset/Robot_Data")
    """Where the CSV file of the sampled states goes."""
    config: Path | None = None
    """YAML file with any of these options; the command line wins over it."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_port("--port", self.port)
        check_port("--action-port", self.action_port)
        check_number("--time-port", self.time_port, 0, 65_535)
        check_number("--rate-hz", self.rate_hz, 1, 1000)
        check_number("--action-hz", self.action_hz, 0.1, 1000)
        check_number("--speed-scale", self.speed_scale, 0.001, 1)
        if self.robot == "on" or self.driver is not None:
            registry.choose(robots.DRIVERS, self.driver)


def _limits(driver: RobotDriver, options: RobotOptions) -> MotionLimits:
    """The driver's own limits or else the Meca500's, at the part of the speed asked for."""
    limits: MotionLimits | None = getattr(driver, "limits", None)
    if limits is None:
        return MotionLimits.of_arm(speed_scale=options.speed_scale)
    return limits.scaled(options.speed_scale)


def _idle(stop: threading.Event) -> None:
    logger.info("[ROBOT] --robot off: no robot is used and nothing is sent; --robot on starts it")
    while not stop.wait(5.0):
        logger.info("[ROBOT] idle (--robot off)")


def send(options: RobotOptions, stop: threading.Event) -> None:
    """Run the sender until `stop`; raises ProgramError when it cannot start."""
    if options.robot == "off":
        _idle(stop)
        return
    name = registry.choose(robots.DRIVERS, options.driver)
    check_host(options.action_host, options.action_port)
    # A robot that is only watched is neither activated nor homed.
    offered: dict[str, object] = {"moves": options.accept_actions}
    offered |= {"control_hz": options.rate_hz, "speed_scale": options.speed_scale}
    driver: RobotDriver = registry.make(robots.DRIVERS, name, offered, options.driver_options)
    # Of a recording nothing is left out, not even in the burst after a stall.
    hwm = _RECORDED_HWM if isinstance(driver, Recorded) else endpoints.ROBOT.hwm
    publishing = {zmq.SNDHWM: hwm, zmq.LINGER: _LINGER_MS}
    publisher = open_socket(zmq.PUB, options.host_bind, options.port, publishing, bind=True)
    motion = resumed = None
    if options.accept_actions:
        executor = ActionExecutor(_limits(driver, options), options.rate_hz, options.action_hz)
        motion = (ActionStream(options.action_host, options.action_port), executor)
        if options.latch_stops:
            resumed = threading.Event()
            threading.Thread(
                target=listen_for_leave, args=(stop, resumed), name="typed", daemon=True
            ).start()
        logger.info("[ROBOT] actions from %s:%d", options.action_host, options.action_port)
    log = RobotLog(options.output_dir)
    where = address(options.host_bind, options.port)
    logger.info("[ROBOT] driver %s, publishing on %s", name, where)
    logger.info("[ROBOT] writing %s", log.path)
    try:
        with exchanging_time(options.action_host, options.time_port, endpoints.ROBOT.stream):
            RobotSender(driver, publisher, log, options.rate_hz, motion, resumed).run(stop)
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
