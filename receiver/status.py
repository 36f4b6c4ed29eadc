"""What the run looks like now, as plain lines and as a view of the whole terminal."""

from __future__ import annotations

import time

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from common import endpoints
from receiver import lines
from receiver.actions import ActionStatus
from receiver.runtime import Runtime

__all__ = ["banner", "draw", "status_lines", "waiting_line"]


def banner(run: Runtime) -> list[str]:
    """What the receiver is about to do, a fact a line."""
    options, spec, answering = run.options, run.policy.spec, run.time is not None
    width, height = spec.image_size
    ports, where = options.ports, options.bind
    robot = endpoints.address(options.robot_ip, ports.robot)
    return [
        "=== dualrate receiver ===",
        f"Device: {spec.device}",
        f"Model: {spec.name}, {spec.parameters / 1e6:.1f} M parameters",
        f"Task: {options.task or spec.task}",
        f"Image size: {width}x{height}, {len(spec.views)} views",
        f"Sensor window: {spec.sensor_window} samples x {spec.sensor_channels} channels",
        f"Action rate: {options.action_hz:g} Hz, {spec.rows} rows of {len(spec.columns)}"
        f" ({spec.space})",
        *lines.guarding(spec.space, options.limits, options.stale_after, options.latch),
        f"VL reuse: {options.vl_reuse}",
        f"Slow loop: in a {run.encoder.where} of its own",
        f"Fusion strategy: {spec.fusion}",
        f"Save data: {options.save_data}"
        + ("" if options.save_data else " (inference results only; `record on` starts)"),
        f"Cameras: listening on {endpoints.address(where, ports.camera)} (PULL)",
        f"Robot: connecting to {robot} (SUB)",
        f"Sensor: listening on udp://{where}:{ports.sensor}",
        f"Actions: publishing on {endpoints.address(where, ports.action)} (PUB)",
        f"Time: answering on {endpoints.address(where, ports.time)} (ROUTER)"
        if answering
        else "Time: not answering; clocks are estimated one-way",
    ]


def waiting_line(run: Runtime) -> str:
    """What is still missing before inference can start."""
    seen, spec = run.observer.observe(), run.policy.spec
    robot = seen.robot is not None if run.options.robot_required else None
    return lines.waiting(
        run.features.newest.get() is not None,
        len(seen.frames),
        len(spec.views),
        len(seen.sensor),
        spec.sensor_window,
        robot,
    )


def status_lines(run: Runtime) -> list[str]:
    """The status block that is printed every two seconds."""
    seen, update = run.observer.observe(), run.features.newest.get()
    state = seen.robot.state if seen.robot else None
    block = lines.status(
        updates=update.number if update else 0,
        vl_mean_s=run.features.durations.mean,
        actions=_action_status(run).number,
        action_mean_s=run.actions.inference.mean,
        frames={view: stream.meter.total for view, stream in run.cameras.views.items()},
        samples=len(seen.sensor),
        window=run.policy.spec.sensor_window,
        joints=state.joints if state else None,
        pose=state.pose if state else None,
    )
    return [*block, *_recording(run)]


def _recording(run: Runtime) -> list[str]:
    """A line about the recording, once there has been one."""
    status = run.recorder.status
    if not (status.on or status.written_bytes or status.failure):
        return []
    dropped = sum(status.dropped.values())
    return [lines.recording(status.on, status.written_bytes, dropped, status.failure)]


def _action_status(run: Runtime) -> ActionStatus:
    return run.actions.status.get() or ActionStatus()


def draw(run: Runtime) -> Panel:
    """The live view: streams, loops, robot, and the newest lines of what happened."""
    status = _action_status(run)
    if status.hold:
        state = Text(f" HOLD: {status.hold} ", style="bold white on red")
    elif status.started:
        state = Text(" RUNNING ", style="bold black on green")
    else:
        state = Text(f" {waiting_line(run)} ", style="bold black on yellow")
    body = Group(
        state, Text(), _streams(run), Text(), _loops(run, status), Text(), *_footer(run, status)
    )
    clock = time.strftime("%H:%M:%S")
    title = f"[bold]dualrate[/bold]  {run.inference_s:6.1f} s"
    return Panel(body, title=title, subtitle=f"{clock}  Ctrl+C stops", border_style="cyan")


def _age(seconds: float, limit_s: float) -> Text:
    if seconds == float("inf"):
        return Text("never", style="bold red")
    style = "bold red" if seconds > limit_s else "yellow" if seconds > limit_s / 2 else "green"
    return Text(f"{seconds * 1e3:.0f} ms", style=style)


def _streams(run: Runtime) -> Table:
    seen, stale = run.observer.observe(), run.options.stale_after
    malformed = run.counters.snapshot()
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("stream", "rate", "received", "lost", "malformed", "age", "clock offset"):
        table.add_column(name, justify="left" if name == "stream" else "right", style="bold")
    for view, stream in run.cameras.views.items():
        frame = seen.frames.get(view)
        table.add_row(
            view,
            f"{stream.meter.rate_hz():.1f}/s",
            str(stream.meter.total),
            str(stream.dropped),
            "",
            _age(seen.at - frame.arrived_at if frame else float("inf"), stale.view_s),
            _offset(stream.clock.offset_s),
        )
    cameras_broken = sum(malformed.get("camera", {}).values())
    if cameras_broken:
        table.add_row("cameras", "", "", "", Text(str(cameras_broken), style="red"), "", "")
    table.add_row(
        "robot",
        f"{run.robot.meter.rate_hz():.1f}/s",
        str(run.robot.meter.total),
        "",
        str(sum(malformed.get("robot", {}).values())),
        _age(seen.at - seen.robot.arrived_at if seen.robot else float("inf"), stale.robot_s),
        _offset(run.robot.clock.offset_s),
    )
    table.add_row(
        f"sensor {len(seen.sensor)}/{run.policy.spec.sensor_window}",
        f"{run.sensor.meter.rate_hz():.1f}/s",
        str(run.sensor.meter.total),
        str(run.sensor.lost),
        str(sum(malformed.get("sensor", {}).values())),
        _age(seen.sensor_age_s, stale.sensor_s),
        _offset(run.sensor.clock.offset_s),
    )
    return table


def _offset(offset_s: float | None) -> str:
    return "" if offset_s is None else f"{offset_s * 1e3:+.1f} ms"


def _loops(run: Runtime, status: ActionStatus) -> Table:
    slow, fast = run.features, run.actions
    update = slow.newest.get()
    table = Table(box=None, pad_edge=False, expand=True, show_header=False)
    for style in ("bold magenta", "", "bold blue", ""):
        table.add_column(style=style)
    late = Text(str(fast.late_updates), style="yellow" if fast.late_updates else "")
    misses = Text(str(fast.misses), style="bold red" if fast.misses else "green")
    lateness = (
        f"{fast.lateness.percentile(50) * 1e3:.2f} / {fast.lateness.percentile(99) * 1e3:.2f} ms"
    )
    inference = (
        f"{fast.inference.percentile(50) * 1e3:.1f} / {fast.inference.percentile(99) * 1e3:.1f} ms"
    )
    reuse = f"{status.feature_use}/{run.options.vl_reuse}"
    rows = (
        (
            "slow: VL update",
            f"#{update.number if update else 0}",
            "fast: action",
            f"#{status.number}",
        ),
        ("mean", f"{slow.durations.mean * 1e3:.0f} ms", "inference p50 / p99", inference),
        ("features served", reuse, "lateness p50 / p99", lateness),
        ("feature age", f"{status.feature_age_s * 1e3:.0f} ms", "deadlines missed", misses),
        ("updates late", late, "holds", str(sum(fast.holds.values()))),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _footer(run: Runtime, status: ActionStatus) -> list[Text]:
    seen = run.observer.observe()
    out: list[Text] = []
    if seen.robot:
        joints = "  ".join(f"{angle:8.2f}" for angle in seen.robot.state.joints)
        pose = "  ".join(f"{value:8.2f}" for value in seen.robot.state.pose)
        out += [Text(f"joints °  {joints}"), Text(f"pose      {pose}  mm, °")]
    if status.first_row:
        row = "  ".join(f"{value:8.2f}" for value in status.first_row)
        out.append(Text(f"action    {row}"))
    if len(seen.sensor):
        out.append(Text(f"force     {seen.sensor[-1, 0]:8.3f} N"))
    cuts = ", ".join(f"{name} {count}" for name, count in run.actions.cuts.items())
    if cuts:
        out.append(Text(f"limits    {cuts}", style="yellow"))
    for line in _recording(run):
        bad = run.recorder.status.failure or run.recorder.status.dropped
        out.append(Text(line.replace("Recording:", "recording"), style="yellow" if bad else ""))
    out.append(Text(f"task      {run.task.get() or run.policy.spec.task}", style="italic"))
    if note := run.note.get():
        out.append(Text(f"note      {note}", style="bold"))
    out += [
        Text(line, style="dim", overflow="ellipsis", no_wrap=True)
        for line in list(run.console.recent)
    ]
    return out
