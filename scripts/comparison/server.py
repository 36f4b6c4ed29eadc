"""The policy server of the comparison, a program: the engine and the ZeroMQ end of `serving`.

Beside the built-in policies of any server it has one more, `follow`, which is not for robots: it
knows the trajectory that this program was started with. It listens on this computer only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.priority import this_process_first
from common.program import OptionError, check_number, run
from scripts.comparison.policy import FollowingPolicy
from scripts.comparison.trajectory import Trajectory, TrajectoryError
from serving.engine import Engine, EngineOptions
from serving.messages import Instructions, ServingError
from serving.policies import load_policy
from serving.served import ServedPolicy
from serving.transports.zmq_server import ZmqServer

__all__ = ["LISTENS", "POLICY_TYPE", "FollowOptions", "follow_path", "load"]

POLICY_TYPE = "builtin"

LISTENS = "listens on port "
_HOST = "127.0.0.1"
_VARIANT = "follow?"
_LONGEST_DELAY_S = 60.0
_PATIENCE_S = 30.0

logger = logging.getLogger("serving.comparison")


@dataclass(frozen=True)
class FollowOptions:
    """Serve the policy that follows a trajectory."""

    trajectory: Path
    """What `Trajectory.save` wrote."""
    port: int = 0
    """Where to listen; 0 takes any port and says which."""
    duration: float | None = None
    """Stop after so many seconds."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_number("--port", self.port, 0, 65_535)


def follow_path(delay_s: float, busy: bool) -> str:
    """The path by which a client asks for a prediction that takes so long."""
    return f"{_VARIANT}delay_s={delay_s!r}&busy={int(busy)}"


def load(
    trajectory: Trajectory, instructions: Instructions, options: EngineOptions
) -> ServedPolicy:
    """What the instructions ask for; that of `follow_path` follows the trajectory.

    Raises:
        ServingError: for what cannot be loaded.
    """
    if instructions.policy_type != POLICY_TYPE or not instructions.path.startswith(_VARIANT):
        return load_policy(instructions, options)
    try:
        given = dict(parse_qsl(instructions.path.removeprefix(_VARIANT), strict_parsing=True))
        delay_s, busy = float(given["delay_s"]), given["busy"] == "1"
    except (ValueError, KeyError):
        raise ServingError("bad_policy", f"the path is {_VARIANT}delay_s=SECONDS&busy=0") from None
    if not (math.isfinite(delay_s) and 0.0 <= delay_s <= _LONGEST_DELAY_S):
        raise ServingError("bad_policy", f"delay_s must be from 0 to {_LONGEST_DELAY_S:g}")
    return FollowingPolicy(trajectory, delay_s, busy)


def _serve(options: FollowOptions, stop: threading.Event) -> None:
    try:
        trajectory = Trajectory.load(options.trajectory)
    except TrajectoryError as error:
        raise OptionError(str(error)) from None
    engine_options = EngineOptions(
        fps=trajectory.rate_hz,
        inference_latency_s=0.0,
        inference_timeout_s=_LONGEST_DELAY_S + _PATIENCE_S,
    )
    engine = Engine(engine_options, load=partial(load, trajectory))
    with (
        contextlib.closing(engine),
        contextlib.closing(ZmqServer(engine, _HOST, options.port)) as on,
    ):
        # It stands for a machine of its own, on which no other program would be in its way.
        this_process_first()
        logger.info("%s%d", LISTENS, on.port)
        stop.wait()


def main() -> int:
    """Run from the command line; the exit code."""
    return run(FollowOptions, _serve)


if __name__ == "__main__":
    sys.exit(main())
