"""What goes wrong in a soak, drawn at random from a seed, and how it is done and undone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.network_proxy import NetworkProxy
from scripts.processes import Program, start, stop_all
from scripts.serving_rig import ServingRig

__all__ = ["Fault", "Faults", "Happened", "drawn"]

_KINDS = {
    "cut one": 4,
    "cut all": 2,
    "reset one": 3,
    "reset all": 1,
    "delay one": 3,
    "refuse all": 1,
    "server killed": 2,
    "flood": 2,
    "pickles": 2,
    "half upload": 1,
}
"""Kinds of faults and how often each, relative to the others."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen.

    Attributes:
        kind: one of those above.
        robot: which one it meets; None for all.
        seconds: how long it lasts.
        transport: for those that come as a client.
    """

    kind: str
    robot: str | None
    seconds: float
    transport: str


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault with the monotonic seconds at which it began and was over."""

    fault: Fault
    began_at: float
    healed_at: float


def drawn(chance: Random, robots: Sequence[str], may_kill: bool) -> Fault:
    """The next fault; the server is killed only where it may be."""
    kinds = {kind: often for kind, often in _KINDS.items() if may_kill or kind != "server killed"}
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    robot = chance.choice(list(robots)) if kind.endswith("one") else None
    # Half of the cuts pass unnoticed, the others last until the connection is given up.
    seconds = chance.choice((0.2, 1.0, 2.0, 5.0, 8.0)) if "cut" in kind else chance.uniform(1, 6)
    return Fault(kind, robot, seconds, chance.choice(("grpc", "zmq")))


class Faults:
    """Does faults to a rig and the networks of its robots."""

    def __init__(self, rig: ServingRig, networks: Mapping[str, NetworkProxy], folder: Path) -> None:
        """`networks` by the robot's name. Logs go to `folder`, and a file no exploit may make."""
        self._rig, self._networks, self._folder = rig, networks, folder
        self.trace = folder / "exploited"
        self._guests = 0
        self.trouble: list[str] = []

    def do(self, fault: Fault, stop: threading.Event) -> Happened:
        """Let it happen, wait, undo it. RigError where the server does not come back."""
        began = time.monotonic()
        met = [fault.robot] if fault.robot is not None else list(self._networks)
        networks = [self._networks[name] for name in met]
        what = fault.kind.partition(" ")[0]
        if fault.kind == "server killed":
            self._rig.kill_server()
            stop.wait(fault.seconds)
            self._rig.start_server()
        elif what in ("cut", "refuse"):
            for network in networks:
                (network.cut if what == "cut" else network.refuse)()
            stop.wait(fault.seconds)
            for network in networks:
                network.heal()
        elif what == "reset":
            for network in networks:
                network.reset()
        elif what == "delay":
            for network in networks:
                network.shape(delay_s=0.15, jitter_s=0.1, loss=0.01)
            stop.wait(fault.seconds)
            for network in networks:
                network.shape()
        else:
            self._guest(fault, stop)
        return Happened(fault, began, time.monotonic())

    def _guest(self, fault: Fault, stop: threading.Event) -> None:
        """A client that the server should not have."""
        self._guests += 1
        does = {"flood": "flood", "pickles": "pickles"}.get(fault.kind, "half_upload")
        transport = fault.transport if does != "pickles" else "grpc"
        if does == "half_upload" and transport == "zmq":
            does = "half_message"
        arguments = ["scripts/bad_client.py", "--does", does, "--transport", transport]
        arguments += ["--address", f"127.0.0.1:{self._rig.port(transport)}"]
        arguments += ["--trace", str(self.trace)]
        log = self._folder / f"guest{self._guests}.log"
        guest: Program = start(f"guest {self._guests} ({does})", arguments, log)
        with contextlib.suppress(Exception):
            self._rig.wait_for_words(guest, "flooding" if does == "flood" else "", 10.0)
        # Loading the program takes as long as some faults do.
        stop.wait(fault.seconds + 1.0)
        if does.startswith("half"):
            guest.process.kill()
            guest.process.wait()
        else:
            self.trouble += stop_all([guest])
