"""Drives a running rig by the scripted expert, as a person with a joystick would: to record it.

python sim/pilot.py
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("sim")

import numpy as np

from common.clock import Ticker
from common.endpoints import RIG_COMMAND, RIG_STATE
from common.stopping import stopping
from senders.drivers import DriverError
from sim.drivers import SimRobot
from sim.expert import Expert
from sim.layout import Layout
from sim.link import RigLink
from sim.messages import RigState

__all__ = ["Pilot", "main"]

_RATE_HZ = 100.0
_STALE_S = 0.5
# The arm is where it was told to be a command's way later, on average half a state's period.
_WAY_S = 0.004


@dataclass(frozen=True)
class Options:
    """Let the scripted expert do the task on the rig, episode after episode."""

    host: str = "127.0.0.1"
    """Where the rig runs."""
    state_port: int = RIG_STATE.port
    """Port of the rig's states."""
    command_port: int = RIG_COMMAND.port
    """Port of the rig's commands."""


class Pilot:
    """The expert at the controls of a rig process."""

    def __init__(self) -> None:
        """Nothing is known of the rig yet."""
        self._episode: tuple[int, int] | None = None
        self._expert: Expert | None = None
        self._time_s = 0.0

    def steer(self, state: RigState) -> np.ndarray | None:
        """Joint targets (6,) in degrees for a state of the rig; None for one seen before."""
        episode = (state.run, state.episode)
        if episode != self._episode or self._expert is None:
            self._episode, self._time_s = episode, state.sim_time_s
            layout = Layout.from_seed(state.config, state.seed)
            self._expert = Expert(state.config, layout, state.joints_deg)
            return None
        span_s = state.sim_time_s - self._time_s
        if span_s <= 0:
            return None
        self._time_s = state.sim_time_s
        return self._expert.step(state.sim_time_s + _WAY_S, span_s)


def main(options: Options) -> int:
    """Steer until stopped; the exit code: 0, 2 where there is no rig, 1 where it went away."""
    link = RigLink(options.host, options.state_port)
    robot = SimRobot(
        host=options.host, state_port=options.state_port, command_port=options.command_port
    )
    code = 2
    with stopping() as stop:
        try:
            link.open()
            robot.open()
            code = 1
            _steer(link, robot, stop)
        except DriverError as error:
            sys.stderr.write(f"pilot: {error}\n")
            return code
        finally:
            robot.close()
            link.close()
    return 0


def _steer(link: RigLink, robot: SimRobot, stop: threading.Event) -> None:
    pilot = Pilot()
    for _ in Ticker(_RATE_HZ).ticks(stop):
        state = link.newest(_STALE_S, _STALE_S)
        if state is None:
            raise DriverError(f"the rig at {link.address} has gone silent")
        joints = pilot.steer(state)
        if joints is not None:
            robot.move_joints(joints)


if __name__ == "__main__":
    sys.exit(main(cli.parse(Options)))
