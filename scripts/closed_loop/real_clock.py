"""The dual-rate receiver on the real clock, beside the same episodes in virtual time.

    python scripts/closed_loop/real_clock.py --policy assets/policy --episodes 10

Rig, senders and receiver run as processes of their own, over real sockets. The rig's record of
what happened is judged as the study judges its episodes. Then the study's virtual rig runs the
same episodes with the latencies that were measured.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import tyro
import zmq
from rich.console import Console

from common import cli, endpoints
from policies.base import PolicyError
from scripts.closed_loop.episode import EpisodeResult
from scripts.closed_loop.estimates import points
from scripts.closed_loop.score import Outcome, Score, ScoreOptions
from scripts.closed_loop.trace_reader import TraceError, TraceReader
from scripts.closed_loop.workers import Workers, WorkersError
from scripts.processes import Program, start, stop_all
from senders.drivers import DriverError
from sim.messages import Command, encode_command

__all__ = ["RealClockOptions", "main"]

_START_S = 300.0
_LOOK_S = 0.1
_SILENT_S = 15.0


@dataclass(frozen=True)
class RealClockOptions:
    """Run episodes on the real clock through the real processes, and again in virtual time."""

    policy: Path
    """Folder of a checkpoint."""
    out: Path = Path("runs/real-clock")
    """Folder of the logs and results."""
    episodes: int = 10
    """How many."""
    first_seed: int = 100_000
    """Of the first episode's layout."""
    vl_reuse: int = 4
    """Ticks that features serve."""
    latency_ms: float = 0.0
    """A pass of the slow half takes so long at least; 0: as long as it takes here."""
    views: tuple[str, ...] = ("View3", "View4")
    """The cameras that the policy looks through."""
    port_offset: int = 400
    """Added to every port."""
    score: tyro.conf.OmitArgPrefixes[ScoreOptions] = field(default_factory=ScoreOptions)
    """When an episode is over."""

    def __post_init__(self) -> None:
        """ValueError for what cannot be run."""
        if not 1 <= self.episodes <= 10_000 or not 0 <= self.first_seed < 2**31 - 10_000:
            raise ValueError("--episodes is from 1 to 10000, --first-seed from 0 to 2147473647")
        if not 0.0 <= self.latency_ms <= 10_000.0:
            raise ValueError("--latency-ms is from 0 to 10000")

    @property
    def seeds(self) -> range:
        """Of the episodes."""
        return range(self.first_seed, self.first_seed + self.episodes)

    def port(self, endpoint: endpoints.Endpoint) -> int:
        """The port of a stream in this run."""
        return endpoint.port + self.port_offset


class RunError(RuntimeError):
    """The processes did not do their part; one line."""


def main() -> int:
    """Run both, and show them beside each other; the exit code."""
    options = cli.parse(RealClockOptions)
    out = Console()
    if not options.policy.exists():
        cli.fail(f"--policy {options.policy}: there is nothing")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        outcomes, summary = _on_the_clock(options, out)
        measured = _measured(options, outcomes, summary)
        latency_ms = _latency_ms(summary)
        virtual = _in_virtual_time(options, latency_ms, summary)
    except (RunError, TraceError, WorkersError) as error:
        cli.fail(str(error), 1)
    except (PolicyError, DriverError) as error:
        cli.fail(str(error))
    except OSError as error:
        cli.fail(f"--out {options.out}: {error.strerror}; name a folder to write to")
    except KeyboardInterrupt:
        return 130
    _show(options, measured, virtual, summary, out)
    return 0


def _on_the_clock(options: RealClockOptions, out: Console) -> tuple[list[Outcome], dict[str, Any]]:
    """The outcomes of all episodes, and the receiver's summary."""
    programs: list[Program] = []
    trace = options.out / "rig.csv"
    for old in (trace, options.out / "summary.json"):
        old.unlink(missing_ok=True)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        programs += _start(options, trace)
        _wait_for_actions(options, programs)
        commands = context.socket(zmq.PUSH)
        commands.set(zmq.LINGER, 1000)
        commands.connect(endpoints.address("127.0.0.1", options.port(endpoints.RIG_COMMAND)))
        reader, outcomes = TraceReader(trace), []
        for number, seed in enumerate(options.seeds, 1):
            commands.send(encode_command(Command("reset", seed=seed)))
            outcome = _judged(reader, number, options, programs)
            outcomes.append(outcome)
            said = "success" if outcome.success else outcome.reason
            out.print(f"seed {seed}: {said}, {outcome.end_s:.1f} s, RMS {outcome.rms_mm:.2f} mm")
        commands.close()
    finally:
        context.destroy(linger=1000)
        # The receiver first, which is the last: the robot hears that it is over.
        with contextlib.suppress(OSError):
            trouble = stop_all(programs[::-1])
    for line in trouble:  # the episodes are over, and judged
        out.print(line, style="red", markup=False)
    try:
        summary: dict[str, Any] = json.loads((options.out / "summary.json").read_text())
    except ValueError:
        raise RunError("the receiver left no summary") from None
    return outcomes, summary


def _start(options: RealClockOptions, trace: Path) -> list[Program]:
    ports = {name: options.port(getattr(endpoints, name.upper())) for name in _STREAMS}
    state = f"state_port={options.port(endpoints.RIG_STATE)}"
    command = f"command_port={options.port(endpoints.RIG_COMMAND)}"
    time_port = ["--time-port", str(ports["time"])]
    rig = ["sim/rig_server.py", "--seed", str(options.first_seed), "--trace", str(trace)]
    rig += ["--state-port", str(options.port(endpoints.RIG_STATE))]
    rig += ["--command-port", str(options.port(endpoints.RIG_COMMAND))]
    robot = ["senders/robot_sender.py", "--robot", "on", "--driver", "sim", "--accept-actions"]
    robot += ["--port", str(ports["robot"]), "--action-port", str(ports["action"]), *time_port]
    robot += ["--output-dir", str(options.out / "Robot_Data"), "--driver-options", state, command]
    cameras = ["senders/jetson_camera_sender.py", "--driver", "sim", "--width", "640"]
    cameras += ["--height", "360", "--cameras", ",".join(options.views)]
    cameras += ["--port", str(ports["camera"]), *time_port, "--driver-options", state]
    sensor = ["senders/force_sensor_sender.py", "--driver", "sim"]
    sensor += ["--port", str(ports["sensor"]), *time_port, "--driver-options", state]
    receiver = ["receiver/main.py"]
    if options.latency_ms > 0:
        receiver = ["scripts/closed_loop/delayed_receiver.py", f"{options.latency_ms:g}"]
    receiver += ["--checkpoint", str(options.policy.resolve()), "--plain"]
    receiver += ["--vl-reuse", str(options.vl_reuse), "--output-dir", str(options.out.resolve())]
    receiver += ["--summary", str((options.out / "summary.json").resolve())]
    for name, port in ports.items():
        receiver += [f"--ports.{name}", str(port)]
    named = {"rig": rig, "robot": robot, "cameras": cameras, "sensor": sensor}
    named["receiver"] = receiver
    return [start(name, words, options.out / f"{name}.log") for name, words in named.items()]


_STREAMS = ("camera", "robot", "sensor", "action", "time")


def _wait_for_actions(options: RealClockOptions, programs: Sequence[Program]) -> None:
    """Until the receiver acts; RunError when something ends before, or it does not."""
    log, pause = options.out / "receiver.log", threading.Event()
    deadline = time.monotonic() + _START_S
    while "[ACTION" not in log.read_text(encoding="utf-8", errors="replace"):
        _check(programs)
        if time.monotonic() > deadline:
            words = "; ".join(f"{program.name}: {program.last_words(1)}" for program in programs)
            raise RunError(f"inference did not get under way in {_START_S:g} s: {words}")
        pause.wait(_LOOK_S)


def _check(programs: Sequence[Program]) -> None:
    for program in programs:
        if program.process.poll() is not None:
            raise RunError(f"{program.name} ended early: {program.last_words(2)}")


def _judged(
    reader: TraceReader, episode: int, options: RealClockOptions, programs: Sequence[Program]
) -> Outcome:
    """Watch an episode to its end."""
    score, pause = Score(options.score), threading.Event()
    heard_at = time.monotonic()
    while True:
        for number, reading in reader.new():
            heard_at = time.monotonic()
            if number == episode and not score.over:
                score.see(reading)
        if score.over:
            return score.outcome()
        _check(programs)
        if time.monotonic() - heard_at > _SILENT_S:
            raise RunError(f"the rig's record stands still: {programs[0].last_words(2)}")
        pause.wait(_LOOK_S)


def _latency_ms(summary: dict[str, Any]) -> float:
    """What a pass of the slow half took, on average."""
    return round(float(summary["vl_ms_mean"]), 1)


def _measured(
    options: RealClockOptions, outcomes: Sequence[Outcome], summary: dict[str, Any]
) -> list[EpisodeResult]:
    """The outcomes as rows; what the receiver says of the whole run stands in each."""
    return [
        EpisodeResult.of(
            outcome,
            method=f"dual-{options.vl_reuse}",
            latency_ms=_latency_ms(summary),
            seed=seed,
            encoded=0,
            acted=0,
            held=0.0,
            age_ms=float(summary["feature_age_ms_p50"]),
        )
        for seed, outcome in zip(options.seeds, outcomes, strict=True)
    ]


def _in_virtual_time(
    options: RealClockOptions, latency_ms: float, summary: dict[str, Any]
) -> list[EpisodeResult]:
    """The same episodes with the latencies that were measured."""
    name, act_ms = f"dual-{options.vl_reuse}", float(summary["action_ms_p50"])
    keys = [(name, latency_ms, seed) for seed in options.seeds]
    with Workers(1, str(options.policy), act_ms, options.score) as workers:
        return sorted(workers.run(keys), key=lambda row: row.seed)


def _show(
    options: RealClockOptions,
    measured: Sequence[EpisodeResult],
    virtual: Sequence[EpisodeResult],
    summary: dict[str, Any],
    out: Console,
) -> None:
    alike = sum(a.success == b.success for a, b in zip(measured, virtual, strict=True))
    lines = [
        f"dual-rate, reuse {options.vl_reuse}, {len(measured)} episodes; slow half "
        f"{summary['vl_ms_mean']:.0f} ms, fast half {summary['action_ms_p50']:.1f} ms, "
        f"{summary['deadline_misses']} deadlines missed",
        "",
        "| clock | success, % | RMS error, mm: median | done after, s | picture age, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for clock, rows in (("real", measured), ("virtual", virtual)):
        (point,) = points(rows)
        share, rms = point.success, point.rms_median_mm
        done = sorted(row.done_s for row in rows if row.success)
        middle = f"{done[len(done) // 2]:.1f}" if done else "–"
        error = (
            "–" if math.isnan(rms.value) else f"{rms.value:.2f} ({rms.low:.2f} to {rms.high:.2f})"
        )
        lines.append(
            f"| {clock} | {100 * share.value:.0f} ({100 * share.low:.0f} to "
            f"{100 * share.high:.0f}) | {error} | {middle} | {point.age_ms:.0f} |"
        )
    lines += ["", f"The same outcome in {alike} of {len(measured)} episodes.", ""]
    (options.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    out.print("\n".join(lines), markup=False, soft_wrap=True)
    out.print(f"table  {options.out / 'table.md'}")


if __name__ == "__main__":
    sys.exit(main())
