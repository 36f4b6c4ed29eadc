"""Four simulated robots on one policy server for half an hour, and everything that can go wrong.

python scripts/soak_serving.py --minutes 30 --seed 0

Cuts, resets, delays, refusals, a server that is killed, floods, hostile pickles and broken uploads
come at random from the seed. Ends with 1 when a limit was violated, a motion came of input that was
too old, a session did not recover, a robot stood still, or something grew.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.markup import escape
from rich.progress import Progress

from common import cli
from common.stopping import stopping
from scripts import soak_plot
from scripts.benches import wide_console
from scripts.command_log import read_commands
from scripts.network_proxy import NetworkProxy
from scripts.serving_rig import STAMPED_ROBOT, RigError, ServingRig, builtin_path
from scripts.soak_faults import Faults, Happened, drawn
from scripts.soak_samples import Growth, Sample, sampled
from scripts.soak_verdict import RobotVerdict, as_json, judged, lifetimes, robot_table

__all__ = ["SoakOptions", "main"]

_SAMPLE_S = 2.0
_REST_S = (12.0, 16.0)
_RECOVER_S = 6.0
"""Half of a rest at most: in the other half every robot must move."""
_FPS, _ROWS, _AGE_S = 30.0, 60, 1.5
"""A chunk spans 2 s: without the limit on the input's age, robots would use it up while cut off."""
_WARM_S = 700.0
"""A robot's record keeps its last 20,000 commands: at 30 Hz it is full after 667 s."""


@dataclass(frozen=True)
class SoakOptions:
    """Run robots against a server under random faults, and check everything afterwards."""

    minutes: float = 30.0
    """How long."""
    seed: int = 0
    """Of the faults."""
    robots: int = 4
    """How many, half of them over gRPC, the others over ZeroMQ."""
    folder: Path = Path("runs/soak-serving")
    """For logs, records, the figures (soak.json) and the picture (soak.png)."""

    def __post_init__(self) -> None:
        """ValueError, one line, for what cannot be run."""
        if not (math.isfinite(self.minutes) and self.minutes >= 0.5 and 1 <= self.robots <= 64):
            raise ValueError("--minutes must be 0.5 or more, --robots from 1 to 64")


class Soak:
    """The programs of a soak while they run, and what was seen of them."""

    def __init__(self, options: SoakOptions) -> None:
        """Nothing runs yet."""
        self._options = options
        self.rig = ServingRig(options.folder, {"inference_timeout": 2})
        self.transports = {
            f"robot{k + 1}-{transport}": transport
            for k, transport in zip(
                range(options.robots), ("grpc", "zmq") * options.robots, strict=False
            )
        }
        self.samples: dict[str, list[Sample]] = {}
        self.happened: list[Happened] = []
        self.trouble: list[str] = []
        self.began_at = time.monotonic()

    def run(self, stop: threading.Event, progress: Progress) -> None:
        """Start, let things happen until the time is up, stop; RigError where that fails."""
        options = self._options
        task = progress.add_task("starting", total=60 * options.minutes)
        with contextlib.ExitStack() as stack:
            stack.callback(self.rig.close)
            self.rig.start_server()
            networks = {
                name: stack.enter_context(
                    NetworkProxy(("127.0.0.1", self.rig.port(transport)), seed=options.seed)
                )
                for name, transport in self.transports.items()
            }
            for name, network in networks.items():
                self._start_robot(name, network.port)
            for client in self.rig.clients.values():
                self.rig.wait_for_words(client, "[CLIENT] moving")
            self.began_at = time.monotonic()
            faults = Faults(self.rig, networks, options.folder)
            sampling = stack.enter_context(self._sampled())
            self._misfortunes(faults, stop, lambda fault: progress.update(
                task, description=fault, completed=time.monotonic() - self.began_at
            ))  # fmt: skip
            sampling.set()
            self._finish(faults)

    def _start_robot(self, name: str, port: int) -> None:
        path = builtin_path("sway", stamp=1, rows=_ROWS, amplitude=10, inference_s=0.03)
        robot = {"width": 320, "height": 240} | STAMPED_ROBOT
        options = {
            "fps": _FPS,
            "actions_per_chunk": _ROWS,
            "aggregate_fn_name": "latest_only",
            "max_input_age": _AGE_S,
            "connect_timeout": 2,
            "reconnect_timeout": 120,
        }
        self.rig.start_client(name, port, self.transports[name], path, robot, options)

    def _misfortunes(self, faults: Faults, stop: threading.Event, show: object) -> None:
        """One fault after the other, with a rest after each in which all must recover."""
        chance = Random(self._options.seed)
        ends_at = self.began_at + 60 * self._options.minutes
        assert callable(show)
        while not stop.wait(chance.uniform(*_REST_S)):
            left_s = ends_at - time.monotonic()
            if left_s < 10.0 + _REST_S[1]:
                show("the last minute in peace")
                stop.wait(max(0.0, left_s))
                return
            # In its second half the server lives on, so that a leak has time to show.
            fault = drawn(chance, list(self.transports), left_s > 30 * self._options.minutes)
            show(f"{fault.kind} {fault.robot or ''}")
            self.happened.append(faults.do(fault, stop))
            show("rest")
            for name, client in self.rig.clients.items():
                if client.process.poll() is not None:
                    raise RigError(f"{name} ended: {client.last_words(3)}")

    def _finish(self, faults: Faults) -> None:
        self.trouble += faults.trouble
        if faults.trace.exists():
            self.trouble.append(f"an exploit was executed: {faults.trace} is there")
        for name, client in self.rig.clients.items():
            if code := self.rig.stop(client):
                self.trouble.append(f"{name} ended with code {code}: {client.last_words(2)}")
        server = self.rig.server
        if server is not None and self.rig.stop(server):
            self.trouble.append(f"the server ended with an error: {server.last_words(3)}")
        for log in sorted(self._options.folder.glob("*.log")):
            if "Traceback" in log.read_text(encoding="utf-8", errors="replace"):
                self.trouble.append(f"a traceback in {log}")

    @contextlib.contextmanager
    def _sampled(self) -> Iterator[threading.Event]:
        """Look at every process every two seconds, until the event that this gives is set."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(_SAMPLE_S):
                running = dict(self.rig.clients)
                if self.rig.server is not None:
                    running["server"] = self.rig.server
                for name, program in running.items():
                    sample = sampled(program.process.pid, time.monotonic())
                    if sample is not None and program.process.poll() is None:
                        self.samples.setdefault(name, []).append(sample)

        thread = threading.Thread(target=look, name="samples", daemon=True)
        thread.start()
        try:
            yield done
        finally:
            done.set()
            thread.join(10)


def _warm_s(minutes: float) -> float:
    return min(_WARM_S, 0.4 * 60 * minutes)


def _write(
    soak: Soak,
    options: SoakOptions,
    verdicts: list[RobotVerdict],
    grown: dict[str, Growth],
    broken: list[str],
) -> None:
    began = soak.began_at
    content = {
        "minutes": options.minutes,
        "seed": options.seed,
        "passed": not broken,
        "broken": broken,
        "robots": [as_json(verdict) for verdict in verdicts],
        "growth": {name: asdict(found) for name, found in grown.items()},
        "faults": [
            asdict(one.fault) | {"began_s": one.began_at - began, "healed_s": one.healed_at - began}
            for one in soak.happened
        ],
    }
    path = options.folder / "soak.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def main() -> int:
    """Run, judge, show; the exit code."""
    options = cli.parse(SoakOptions)
    out = wide_console()
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for old in (*options.folder.glob("*.log"), *options.folder.glob("*.csv")):
            old.unlink()
    except OSError as error:
        cli.fail(f"--folder {options.folder}: {error.strerror}")
    soak = Soak(options)
    try:
        with stopping() as stop, Progress(console=out, transient=True) as progress:
            soak.run(stop, progress)
        logs = {name: read_commands(soak.rig.record(name)) for name in soak.transports}
        verdicts = [
            judged(
                name, log, soak.rig.summary(name), soak.happened,
                age_s=_AGE_S, recover_s=_RECOVER_S, fps=_FPS,
            )
            for name, log in logs.items()
        ]  # fmt: skip
    except RigError as error:
        cli.fail(str(error), 1)
    grown = lifetimes(soak.samples, _warm_s(options.minutes))
    broken = [f"{verdict.name}: {line}" for verdict in verdicts for line in verdict.broken]
    broken += [f"{name} leaks: {line}" for name, found in grown.items() for line in found.leaks]
    broken += soak.trouble
    soak_plot.draw(logs, soak.samples, soak.happened, soak.began_at, options.folder / "soak.png")
    _write(soak, options, verdicts, grown, broken)
    out.print(robot_table(verdicts, grown))
    out.print(f"{len(soak.happened)} faults in {options.minutes:g} minutes, seed {options.seed}")
    for line in broken:
        out.print(f"[red]✗[/red] {escape(line)}")
    if not broken:
        out.print("[green]✓[/green] every limit kept, every session recovered, nothing grew")
    out.print(f"{options.folder}/soak.json, soak.png")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
