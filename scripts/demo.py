"""The whole pipeline on the simulated rig: five programs, real sockets, one summary, one picture.

python scripts/demo.py --duration 30
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "sim")

from rich.console import Console
from rich.table import Table

from common import endpoints
from scripts.processes import ROOT, Program, start, stop_all, wait_for_any
from scripts.scoreboard import Scoreboard, read_score
from senders.drivers import DriverError
from sim.model import RigConfig, build_model
from sim.rendering import RigRenderer

POLICY = ROOT / "assets" / "insertion-policy"
"""Trained on the simulated rig, see docs/training.md."""

_START_S = 120.0
_STOP_S = 10.0


@dataclass(frozen=True)
class DemoOptions:
    """Run the simulated rig, its three senders and the receiver; show what came out."""

    duration: float = 30.0
    """Seconds of inference."""
    seed: int = 0
    """Where the port in the eye phantom is."""
    checkpoint: Path = POLICY
    """The policy; where nothing is there, a small one with random weights is made."""
    vl_reuse: int = 4
    """Actions a vision-language feature serves."""
    action_hz: float = 10.0
    """The fast loop's clock."""
    width: int = 640
    """Pixels across a view."""
    height: int = 360
    """Pixels down a view."""
    runs_dir: Path = Path("runs")
    """Where the run's folder is made; runs_dir/latest leads to it."""
    port_offset: int = 0
    """Added to every port, so that two demos can run at once."""
    plain: bool = False
    """Plain lines instead of the live view."""
    expert: bool = False
    """The scripted expert drives instead; what the policy would do is only shown."""
    save_data: bool = False
    """Record the session, or sessions: scripts/train.py learns from them."""
    check: bool = False
    """End with code 1 when a figure misses its goal."""


def main() -> int:
    """Make the policy if missing, run everything, show the outcome; the exit code."""
    options = cli.parse(DemoOptions)
    out = Console()
    _check_rendering()
    folder = _folder(options.runs_dir)
    ensure_checkpoint(options.checkpoint)
    rest: list[Program] = []
    receiver: Program | None = None
    board: Scoreboard | None = None
    failed = False
    try:
        rest.append(_start_rig(options, folder))
        rest += _start_senders(options, folder)
        if options.expert:
            rest.append(_start_expert(options, folder))
        receiver = _start_receiver(options, folder)
        assert receiver.process.stdin is not None
        board = Scoreboard(folder / "score.jsonl", receiver.process.stdin)
        first = wait_for_any([receiver, *rest], options.duration + _START_S)
        if first is not receiver:
            failed = True
            out.print(_what_went_wrong(first, rest), style="red", markup=False)
    except KeyboardInterrupt:
        # The receiver got the same Ctrl+C from the terminal and is stopping.
        out.print("stopping …")
        if receiver is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                receiver.process.wait(_STOP_S)
    finally:
        # The receiver first: the robot hears that it is over while its side still listens.
        trouble = stop_all([*([receiver] if receiver else []), *rest[::-1]])
        if board is not None:
            board.close()
    for line in trouble:
        out.print(f"[red]{line}[/red]")
    missed = _show(folder, out)
    return 1 if failed or trouble or (options.check and missed) else 0


def _check_rendering() -> None:
    """End with one line when this machine cannot draw the rig, before anything is started."""
    try:
        RigRenderer(build_model(RigConfig(), 0), 64, 36).close()
    except DriverError as error:
        cli.fail(str(error))


def _what_went_wrong(ended: Program | None, rest: list[Program]) -> str:
    """Why the receiver is not the first to end."""
    if ended is not None:
        return f"{ended.name} ended early:\n{ended.last_words()}"
    said = "\n".join(f"{program.name}: {program.last_words(1)}" for program in rest)
    return f"inference did not get under way in {_START_S:g} s; the others' last words:\n{said}"


def _folder(runs: Path) -> Path:
    folder = (runs / time.strftime("%Y%m%d_%H%M%S")).resolve()
    try:
        folder.mkdir(parents=True)
        latest = runs / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
    except OSError as error:
        cli.fail(f"--runs-dir {runs}: {error.strerror}; name a folder to write to")
    return folder


def ensure_checkpoint(path: Path) -> None:
    """Make the small policy where there is none."""
    if path.exists():
        return
    if path.suffix in (".pt", ".pth"):
        cli.fail(f"--checkpoint {path}: no such file")
    # Made beside its place and then moved there: one that was interrupted is not taken for whole.
    draft = path.resolve().with_name(f"{path.name}.part")
    arguments = ["scripts/make_tiny_checkpoint.py", "--out", str(draft)]
    # Random weights know no way to the port: they may stir the arm where the rig puts it.
    arguments += ["--on-rig"]
    if start("checkpoint", arguments).process.wait() != 0:
        raise SystemExit(1)
    draft.replace(path)


def _start_rig(options: DemoOptions, folder: Path) -> Program:
    arguments = ["sim/rig_server.py", "--seed", str(options.seed)]
    arguments += ["--state-port", str(endpoints.RIG_STATE.port + options.port_offset)]
    arguments += ["--command-port", str(endpoints.RIG_COMMAND.port + options.port_offset)]
    arguments += ["--trace", str(folder / "rig.csv"), "--judged"]
    arguments += ["--score", str(folder / "score.jsonl")]
    return start("rig", arguments, folder / "rig.log")


def _start_senders(options: DemoOptions, folder: Path) -> list[Program]:
    offset = options.port_offset
    state, command = (e.port + offset for e in (endpoints.RIG_STATE, endpoints.RIG_COMMAND))
    robot = ["senders/robot_sender.py", "--robot", "on", "--driver", "sim"]
    robot += [] if options.expert else ["--accept-actions"]
    robot += ["--port", str(endpoints.ROBOT.port + offset)]
    robot += ["--action-port", str(endpoints.ACTION.port + offset)]
    robot += ["--time-port", str(endpoints.TIME.port + offset)]
    robot += ["--action-hz", str(options.action_hz), "--output-dir", str(folder / "Robot_Data")]
    robot += ["--driver-options", f"state_port={state}", f"command_port={command}"]
    cameras = ["senders/jetson_camera_sender.py", "--driver", "sim"]
    cameras += ["--port", str(endpoints.CAMERA.port + offset)]
    cameras += ["--time-port", str(endpoints.TIME.port + offset)]
    cameras += ["--width", str(options.width), "--height", str(options.height)]
    cameras += ["--driver-options", f"state_port={state}"]
    sensor = ["senders/force_sensor_sender.py", "--driver", "sim"]
    sensor += ["--time-port", str(endpoints.TIME.port + offset)]
    sensor += [
        "--port",
        str(endpoints.SENSOR.port + offset),
        "--driver-options",
        f"state_port={state}",
    ]
    named = {"robot": robot, "cameras": cameras, "sensor": sensor}
    return [
        start(f"{name} sender", arguments, folder / f"{name}_sender.log")
        for name, arguments in named.items()
    ]


def _start_expert(options: DemoOptions, folder: Path) -> Program:
    arguments = ["sim/pilot.py"]
    arguments += ["--state-port", str(endpoints.RIG_STATE.port + options.port_offset)]
    arguments += ["--command-port", str(endpoints.RIG_COMMAND.port + options.port_offset)]
    return start("expert", arguments, folder / "expert.log")


def _start_receiver(options: DemoOptions, folder: Path) -> Program:
    arguments = ["receiver/main.py", "--checkpoint", str(options.checkpoint)]
    arguments += ["--vl-reuse", str(options.vl_reuse), "--action-hz", str(options.action_hz)]
    arguments += ["--duration", str(options.duration), "--output-dir", str(folder)]
    arguments += ["--summary", str(folder / "summary.json")]
    arguments += ["--save-data"] if options.save_data else []
    for name in ("camera", "robot", "sensor", "action", "time"):
        port = getattr(endpoints, name.upper()).port + options.port_offset
        arguments += [f"--ports.{name}", str(port)]
    return start("receiver", [*arguments, *(["--plain"] if options.plain else [])], typed=True)


# Between two episodes the output is on hold, as it should be.
_BETWEEN_EPISODES = {"episode ended", "no features yet"}


def _goals(
    summary: dict[str, Any], score: list[dict[str, Any]]
) -> list[tuple[str, str, str, bool]]:
    """Name, figure, goal and whether it is met."""
    hz, views = summary["action_hz_wanted"], summary["frames_hz"]
    slowest = min(views.values()) if views else 0.0
    late = summary["action_lateness_ms_p99"]
    malformed = sum(sum(reasons.values()) for reasons in summary["malformed"].values())
    between = sum(summary["holds"].get(why, 0) for why in _BETWEEN_EPISODES)
    holds = sum(summary["holds"].values()) - between
    # Every tick gives one or the other; the first come before there is any action.
    ticks_hz = (summary["actions"] + between) / max(summary["duration_s"], 1e-9)
    errors = [entry["rms_mm"] for entry in score if entry["success"]]
    error = f", {statistics.median(errors):.2f} mm RMS" if errors else ""
    age = summary["feature_age_ms_p50"]
    rows = [
        (
            "episodes that succeeded",
            f"{len(errors)} of {len(score)}{error}",
            "",
            True,
        ),
        (
            "actions, holds between episodes",
            f"{ticks_hz:.2f} Hz",
            f"{hz:g} Hz ± 1%",
            abs(ticks_hz - hz) <= 0.01 * hz,
        ),
        ("deadlines missed", str(summary["deadline_misses"]), "0", summary["deadline_misses"] == 0),
        (
            "lateness p50 / p99",
            f"{summary['action_lateness_ms_p50']:.2f} / {late:.2f} ms",
            "p99 ≤ 5 ms",
            late <= 5.0,
        ),
        (
            "action inference p50 / p99",
            f"{summary['action_ms_p50']:.1f} / {summary['action_ms_p99']:.1f} ms",
            "",
            True,
        ),
        (
            "VL updates",
            f"{summary['vl_hz']:.2f} Hz, {summary['vl_ms_mean']:.0f} ms each",
            "≥ 2 Hz",
            summary["vl_hz"] >= 2.0,
        ),
        ("feature age p50 / p99", f"{age:.0f} / {summary['feature_age_ms_p99']:.0f} ms", "", True),
        ("slowest view", f"{slowest:.1f} frames/s", "≥ 25", slowest >= 25.0),
        ("robot", f"{summary['robot_hz']:.1f} Hz", "100 ± 2", abs(summary["robot_hz"] - 100) <= 2),
        (
            "sensor",
            f"{summary['sensor_hz']:.1f} Hz",
            "650 Hz ± 1%",
            abs(summary["sensor_hz"] - 650) <= 6.5,
        ),
        ("sensor samples lost", str(summary["sensor_lost"]), "0", summary["sensor_lost"] == 0),
        ("malformed messages", str(malformed), "0", malformed == 0),
        ("holds within episodes", str(holds), "0", holds == 0),
        (
            "memory now / peak",
            f"{summary['rss_mb_end']:.0f} / {summary['peak_rss_mb']:.0f} MB",
            "",
            True,
        ),
    ]
    return rows


def _show(folder: Path, out: Console) -> bool:
    """Print the summary and draw the report; True when a goal was missed."""
    path = folder / "summary.json"
    if not path.exists():
        out.print("[red]the receiver left no summary[/red]")
        return True
    summary = json.loads(path.read_text())
    rows = _goals(summary, read_score(folder / "score.jsonl"))
    table = Table(title=f"dualrate demo, {summary['duration_s']:.0f} s", title_style="bold")
    for name in ("", "measured", "goal", ""):
        table.add_column(name)
    for name, figure, goal, met in rows:
        mark = "" if not goal else "[green]✓[/green]" if met else "[red]✗[/red]"
        table.add_row(name, figure, goal, mark)
    out.print(table)
    out.print(f"summary  {path}")
    if summary["actions"]:
        from scripts.report import draw_report

        out.print(f"picture  {draw_report(folder)}")
    return not all(met for *_, met in rows)


if __name__ == "__main__":
    sys.exit(main())
