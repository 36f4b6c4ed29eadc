"""A policy server, robots and the network between them, as processes, for tests of faults.

Every robot here is a stamped one (`serving_rig.STAMPED_ROBOT`): its own record says from when the
input behind each motion was.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.command_log import CommandLog, Limits, read_commands, violations
from scripts.network_proxy import NetworkProxy
from scripts.serving_rig import STAMPED_ROBOT, joints_of, stamped_ages
from tests.support import Child, free_ports, wait_until

TRANSPORTS = ("grpc", "zmq")
ROWS = 60
PATH = f"sway?stamp=1&rows={ROWS}"
FPS = 30.0
AGE_S = 1.5
"""--max_input_age of the robots here; a chunk spans 2 s, and half of it is left when one is due."""
_LATE_S = 0.25
"""How long a busy computer may take from a clock that was read to the command that follows."""


@dataclass(eq=False)
class Robot:
    """A client that runs, and what its robot was told."""

    child: Child
    record: Path
    summary_file: Path
    age_s: float

    def said(self, pattern: str, after: int = 0, timeout_s: float = 30.0) -> float:
        """When it first said so, from line `after` on."""
        return self.child.wait_for(pattern, timeout_s, after)[0]

    @property
    def lines(self) -> int:
        """How many lines it has said."""
        return len(self.child.lines)

    def moving(self, after: int = 0) -> float:
        """When it said that it moves (again)."""
        return self.said(r"moving, was on hold", after)

    def goes_on(self) -> float:
        """When it said that it is connected again; it has moved since, for a while."""
        again_at = self.said("connected again")
        line = next(n for n, (at, _) in enumerate(self.child.lines) if at == again_at)
        self.moving(line)
        self.said("Status Summary.*running", self.lines)
        return again_at

    def ended(self, code: int = 0) -> tuple[CommandLog, dict[str, Any]]:
        """Ctrl+C, the code, nothing of its own gone wrong; its commands, checked, and counts."""
        assert self.child.stop(signal.SIGINT) == code, self.child.text
        assert "Traceback" not in self.child.text, self.child.text
        log = self.checked()
        return log, json.loads(self.summary_file.read_text())

    def checked(self) -> CommandLog:
        """Its commands, after the limits and the age of every motion's input were looked at."""
        log = read_commands(self.record)
        if not len(log.at):
            return log
        assert violations(joints_of(log), Limits(fps=FPS)) == []
        assert not log.is_move[-1], "the last command is to stay"
        ages = stamped_ages(log)
        assert (ages >= -_LATE_S).all(), ages.min()
        assert (ages <= self.age_s + _LATE_S).all(), ages.max()
        return log

    def still(self, log: CommandLog, begin: float, end: float) -> None:
        """It was told to stay, and to nothing else, from a period after `begin` to `end`."""
        inside = log.between(begin + 1 / FPS + _LATE_S, end - _LATE_S)
        assert not inside.is_move.any(), inside.at[inside.is_move] - begin
        before = log.between(-np.inf, end - _LATE_S)
        assert len(before.at) and not before.is_move[-1], "it was not told to stay"

    def fresh(self, log: CommandLog, again_at: float, lost_at: float) -> None:
        """It moves since it is connected again, on nothing that was seen before it was lost."""
        after = log.between(again_at, log.at[-1])
        assert after.is_move.any()
        assert (after.moves_at - stamped_ages(after) > lost_at).all()


class Rig:
    """Starts programs; whatever runs at the end is killed by the fixture that starts them."""

    def __init__(self, program: Callable[..., Child], folder: Path) -> None:
        self._program, self._folder = program, folder
        grpc, zmq = free_ports(2)
        self.ports = {"grpc": grpc, "zmq": zmq}
        self.server_child: Child | None = None
        self._robots = 0

    def address(self, transport: str) -> tuple[str, int]:
        return "127.0.0.1", self.ports[transport]

    def server(self, *options: str) -> Child:
        """Start it (again); it listens."""
        self.server_child = self._program(
            "serving/policy_server.py",
            *("--port", str(self.ports["grpc"]), "--zmq_port", str(self.ports["zmq"])),
            *options,
        )
        child = self.server_child

        def listens() -> bool:
            assert child.process.poll() is None, child.text
            return all(_listens(port) for port in self.ports.values())

        wait_until(listens, "the server to listen", 60)
        return child

    @contextlib.contextmanager
    def networks(self, **faults: float) -> Iterator[dict[str, NetworkProxy]]:
        """A way to the server with such faults, for each transport."""
        with contextlib.ExitStack() as stack:
            yield {
                transport: stack.enter_context(NetworkProxy(self.address(transport), **faults))
                for transport in TRANSPORTS
            }

    def moving_robots(
        self, networks: Mapping[str, NetworkProxy] | None = None, *options: str
    ) -> list[Robot]:
        """A robot on each transport, through the networks where there are any; they move."""
        robots = [
            self.robot(
                transport, PATH, *options, port=networks[transport].port if networks else None
            )
            for transport in TRANSPORTS
        ]
        for robot in robots:
            robot.moving()
        return robots

    def robot(
        self,
        transport: str = "grpc",
        path: str = PATH,
        *options: str,
        port: int | None = None,
        age_s: float = AGE_S,
        policy_type: str = "builtin",
    ) -> Robot:
        """Start a client with a simulated robot."""
        self._robots += 1
        name = self._folder / f"robot{self._robots}"
        scheme = "tcp://" if transport == "zmq" else ""
        child = self._program(
            "serving/robot_client.py",
            *("--server_address", f"{scheme}127.0.0.1:{port or self.ports[transport]}"),
            *("--policy_type", policy_type, "--pretrained_name_or_path", path),
            *("--actions_per_chunk", str(ROWS), "--aggregate_fn_name", "latest_only"),
            *("--fps", f"{FPS:g}", "--max_input_age", f"{age_s:g}"),
            *("--summary", f"{name}.json", "--robot.type", "simulated"),
            *("--robot.record", f"{name}.csv", "--robot.width", "64", "--robot.height", "48"),
            *(
                word
                for key, value in STAMPED_ROBOT.items()
                for word in (f"--robot.{key}", str(value))
            ),
            *options,
        )
        return Robot(child, Path(f"{name}.csv"), Path(f"{name}.json"), age_s)


def cut(
    networks: Mapping[str, NetworkProxy], seconds: float, heal: bool = True
) -> tuple[float, float]:
    """Cut the networks for so long by this computer's clock; when that began and ended."""
    began = time.monotonic()
    for network in networks.values():
        network.cut()
    threading.Event().wait(seconds)
    ended = time.monotonic()
    if heal:
        for network in networks.values():
            network.heal()
    return began, ended


def refused(robot: Robot, code: int = 2) -> str:
    """It ends by itself with the code and one line on why; the robot was never touched."""
    assert robot.child.end() == code, robot.child.text
    assert "Traceback" not in robot.child.text
    assert not robot.record.exists()
    found = re.findall(r"robot_client\.py: (.*)", robot.child.text)
    assert len(found) == 1, robot.child.text
    return str(found[0])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
