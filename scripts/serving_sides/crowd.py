"""Many clients of one server in one process: each asks for a chunk at every tick of its clock.

When all are connected it says so; a line of the input (a time of the monotonic clock, which all
processes of a machine share) starts them; what came of it is one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.clock import Ticker
from scripts.serving_sides.scene import Exchange, check, scenes
from scripts.serving_sides.sides import SideName, connect

_BEGIN_S = 60.0


@dataclass(frozen=True)
class CrowdOptions:
    """Be several clients."""

    side: SideName
    """Who is at the other end, and in what words."""
    address: str
    """HOST:PORT of the server."""
    clients: tuple[int, ...]
    """Numbers of the clients of this process."""
    of: int
    """Clients in all processes together: their clocks are spread evenly over a period."""
    hz: float = 30.0
    """Observations a second and client."""
    seconds: float = 4.0
    """How long."""


class Client:
    """One client: asks at its ticks, and leaves out those that it is too late for."""

    def __init__(self, number: int, options: CrowdOptions) -> None:
        """Connect."""
        self._options, self._number = options, number
        self._exchange: Exchange = connect(options.side, options.address)
        self._exchange.begin(_BEGIN_S)
        self.took_s: list[float] = []
        self.late_s: list[float] = []

    def warm(self, rounds: int) -> None:
        """Some exchanges that do not count."""
        for scene in self._some(rounds):
            check(scene, self._exchange.exchange(scene))

    def _some(self, rounds: int) -> Iterator[Any]:
        yield from (scene for scene, _ in zip(scenes(1), range(rounds), strict=False))

    def run(self, start: float) -> None:
        """Ask from `start` on, for as long as wanted."""
        options, source, never = self._options, scenes(1_000), threading.Event()
        end = start + options.seconds
        ticker = Ticker(options.hz, start + self._number / options.of / options.hz)
        for tick in ticker.ticks(never):
            if tick.deadline >= end:
                break
            scene = next(source)
            begun = time.monotonic()
            chunk = self._exchange.exchange(scene)
            ended = time.monotonic()
            check(scene, chunk)
            if ended < end:
                self.took_s.append(ended - begun)
                self.late_s.append(tick.lateness_s)

    def close(self) -> None:
        """Let go."""
        self._exchange.close()


def main() -> int:
    """Connect all, wait for the start, run, tell; the exit code."""
    options = cli.parse(CrowdOptions)
    clients = [Client(number, options) for number in options.clients]
    for client in clients:
        client.warm(3)
    gc.collect()
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    start = float(sys.stdin.readline())
    threads = [threading.Thread(target=c.run, args=(start,), daemon=True) for c in clients]
    for thread in threads:
        thread.start()
    time.sleep(max(start - time.monotonic(), 0.0))
    cpu_s = time.process_time()
    for thread in threads:
        thread.join()
    cpu_s = time.process_time() - cpu_s
    told = {"took_s": [c.took_s for c in clients], "late_s": [c.late_s for c in clients]}
    print(json.dumps(told | {"cpu_s": cpu_s}), flush=True)
    sys.stdin.readline()  # the server is still measured
    for client in clients:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
