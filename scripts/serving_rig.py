"""A policy server and simulated robots as processes of their own, for tuning and for the soak."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.command_log import CommandLog
from scripts.processes import Program, start, stop_all

__all__ = ["STAMPED_ROBOT", "RigError", "ServingRig", "builtin_path", "joints_of", "stamped_ages"]

_START_S = 60.0
_STOP_S = 15.0
_LOOK_S = 0.02
STAMPED_ROBOT = {
    "joints": 7,
    "max_step": 1000,
    "joint_min": "{joint_7: -1.0e6}",
    "joint_max": "{joint_7: 1.0e6}",
    "joint_speed": "{joint_7: 1.0e6}",
}
"""A simulated arm whose last joint shows the reasons: a built-in policy with `stamp=1` puts the
observation's timestamp there, the limits let it through, and with the aggregation `latest_only`
the record of commands says from when the input behind each motion was. The limits of the other
joints are the usual ones, but for the largest step, which is the speed's at 30 Hz in any case."""
_STAMP_S = 1000.0
_WALL = time.time() - time.monotonic()


def joints_of(log: CommandLog) -> CommandLog:
    """The commands of a stamped robot without the stamps."""
    return CommandLog(log.at, log.is_move, log.targets[:, :-1], log.measured[:, :-1])


def stamped_ages(log: CommandLog) -> NDArray[np.float64]:
    """Seconds from the observation behind each motion of a stamped robot to the motion."""
    if not len(log.at):
        return np.empty(0)
    stamps = log.targets[log.is_move, -1]
    ages = (log.moves_at + _WALL - stamps + _STAMP_S / 2) % _STAMP_S - _STAMP_S / 2
    return np.asarray(ages, np.float64)


class RigError(RuntimeError):
    """A program that did not do its part; one line."""


def builtin_path(variant: str, **options: float) -> str:
    """The path that names a built-in policy, e.g. `sway?rows=50&inference_s=0.05`."""
    return variant + "?" + "&".join(f"{name}={value:g}" for name, value in options.items())


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


class ServingRig:
    """Starts the server and clients; each writes its log, summary and record into `folder`."""

    def __init__(self, folder: Path, server_options: Mapping[str, Any] | None = None) -> None:
        """Start nothing yet. `server_options` go to the server as `--NAME VALUE`."""
        self._folder = folder
        self._options = dict(server_options or {})
        self._ports = {"grpc": free_port(), "zmq": free_port()}
        self._servers = 0
        self.server: Program | None = None
        self.clients: dict[str, Program] = {}

    def port(self, transport: str) -> int:
        """Where the server listens for `grpc` or `zmq`."""
        return self._ports[transport]

    def record(self, client: str) -> Path:
        """What a client's robot was told."""
        return self._folder / f"{client}.csv"

    def log(self, client: str) -> Path:
        """What a client said."""
        return self._folder / f"{client}.log"

    def summary(self, client: str) -> dict[str, Any]:
        """What a client counted, once it has ended; RigError where it wrote nothing."""
        try:
            told: dict[str, Any] = json.loads((self._folder / f"{client}.json").read_text())
        except (OSError, ValueError):
            words = self.clients[client].last_words(2)
            raise RigError(f"{client} left no summary: {words}") from None
        return told

    def start_server(self) -> Program:
        """Start it (again) and wait until it listens."""
        self._servers += 1
        arguments = ["serving/policy_server.py", "--host", "127.0.0.1"]
        arguments += ["--port", str(self._ports["grpc"]), "--zmq_port", str(self._ports["zmq"])]
        options = {"inference_latency": 0} | self._options
        arguments += [word for name in options for word in (f"--{name}", str(options[name]))]
        log = self._folder / f"server{self._servers}.log"
        self.server = start("the policy server", arguments, log)
        deadline = time.monotonic() + _START_S
        for port in self._ports.values():
            while not _listens(port):
                if self.server.process.poll() is not None or time.monotonic() > deadline:
                    raise RigError(f"the server does not start: {self.server.last_words(3)}")
                time.sleep(_LOOK_S)
        return self.server

    def kill_server(self) -> None:
        """SIGKILL: it ends without a word."""
        if self.server is not None:
            self.server.process.kill()
            self.server.process.wait()

    def start_client(
        self,
        name: str,
        port: int,
        transport: str,
        policy_path: str,
        robot: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Program:
        """Start a client of the server behind `port`; it runs until `stop`."""
        scheme = "tcp://" if transport == "zmq" else ""
        words: dict[str, Any] = {
            "server_address": f"{scheme}127.0.0.1:{port}",
            "policy_type": "builtin",
        }
        words |= {"pretrained_name_or_path": policy_path}
        words |= {"summary": str(self._folder / f"{name}.json")}
        words |= {f"robot.{key}": value for key, value in robot.items()}
        words |= {"robot.type": "simulated", "robot.record": str(self.record(name))}
        words |= dict(options)
        arguments = ["serving/robot_client.py"]
        arguments += [word for key in words for word in (f"--{key}", str(words[key]))]
        client = start(name, arguments, self.log(name))
        self.clients[name] = client
        return client

    def wait_for_words(self, program: Program, words: str, timeout_s: float = _START_S) -> None:
        """Until the program says something; RigError when it ends before, or does not."""
        assert program.log is not None
        deadline = time.monotonic() + timeout_s
        while words not in program.log.read_text(encoding="utf-8", errors="replace"):
            if program.process.poll() is not None or time.monotonic() > deadline:
                raise RigError(f"{program.name} did not get to {words!r}: {program.last_words(3)}")
            time.sleep(_LOOK_S)

    def stop(self, client: Program) -> int:
        """Have a client end; its exit code. RigError where it does not."""
        client.process.send_signal(signal.SIGTERM)
        try:
            return client.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            client.process.kill()
            client.process.wait()
            raise RigError(f"{client.name} did not stop: {client.last_words(3)}") from None

    def why(self, error: RigError) -> str:
        """The error, or what is behind it: a server that ended by itself."""
        server = self.server
        if server is None or server.process.poll() is None:
            return str(error)
        return f"the server ended with {server.process.returncode}: {server.last_words(5)}"

    def close(self) -> None:
        """End all that runs."""
        running = [*self.clients.values(), *([self.server] if self.server else [])]
        with contextlib.suppress(OSError):
            stop_all([program for program in running if program.process.poll() is None])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
