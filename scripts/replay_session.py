"""Plays a recorded session again over the real wire, through the three senders, in step.

python scripts/replay_session.py dataset/async_inference_20261009_103000
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import numpy as np
import tyro
from rich.console import Console

from common import endpoints
from common.clock import wall
from common.session import Samples, SessionError
from common.stopping import stopping
from common.wire import max_samples
from scripts.processes import Program, start, stop_all
from scripts.replay_progress import POLL_S, Played, Progress
from senders.replaying import check_speed, finished_session, played_span

STREAMS = ("robot", "cameras", "sensor")
_LEAD_S = 3.0


@dataclass(frozen=True)
class ReplayOptions:
    """Play a recorded session again, as the senders sent it: same bytes, same values, same times.

    The receiver must be running, or be started within the first seconds.
    """

    session: Annotated[Path, tyro.conf.Positional]
    """A session's folder."""
    speed: float = 1.0
    """Session seconds a second, 0.01 to 100."""
    loop: bool = False
    """Begin again at the end; every round is an episode."""
    only: str = ",".join(STREAMS)
    """Which streams."""
    server_ip: str = "localhost"
    """Where the receiver runs."""
    robot_port: int = endpoints.ROBOT.port
    """TCP port on which the robot's states are published."""
    camera_port: int = endpoints.CAMERA.port
    """TCP port on which the receiver takes pictures."""
    sensor_port: int = endpoints.SENSOR.port
    """UDP port on which it takes samples."""
    port_offset: int = 0
    """Added to every port, so that two receivers can run at once."""
    lead: float | None = None
    """Seconds until it begins; without it 3 s, and more for a long recording."""
    duration: float | None = None
    """Stop after so many seconds; without it at the end, or on Ctrl+C."""
    log_dir: Path | None = None
    """Where the senders' output is kept; without it, it is thrown away."""

    def __post_init__(self) -> None:
        """ValueError for an option that cannot be used."""
        check_speed(self.speed)
        if unknown := set(self.streams) - set(STREAMS):
            raise ValueError(f"--only: no stream {min(unknown)!r}; there are {','.join(STREAMS)}")
        if not self.streams:
            raise ValueError(f"--only: none given; there are {','.join(STREAMS)}")
        for name, seconds in (("lead", self.lead), ("duration", self.duration)):
            if seconds is not None and not 0 < seconds <= 86_400:
                raise ValueError(f"--{name} must be above 0 and up to 86400 s, not {seconds:g}")
        for name in ("robot", "camera", "sensor"):
            if not 1 <= (port := getattr(self, f"{name}_port") + self.port_offset) <= 65_535:
                raise ValueError(f"--{name}-port: {port} is no port")

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams asked for."""
        return tuple(filter(None, (name.strip() for name in self.only.split(","))))


@dataclass(frozen=True)
class Recording:
    """What there is to play.

    Attributes:
        folder: the session's.
        seconds: how long it is.
        counts: robot states, pictures and samples, of the streams that have any.
        samples: the force samples.
        read_s: how long it took to read all this.
    """

    folder: Path
    seconds: float
    counts: dict[str, int]
    samples: Samples
    read_s: float


def main() -> int:
    """Read the session, start the senders, wait until all are over; the exit code."""
    options = cli.parse(ReplayOptions)
    out = Console(highlight=False)
    recording = _read(options.session)
    streams = _streams(options, recording, out)
    if options.log_dir is not None:
        try:
            options.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cli.fail(f"--log-dir {options.log_dir}: {error.strerror}")
        return _play(options, recording, streams, options.log_dir.resolve(), out)
    with tempfile.TemporaryDirectory(prefix="dualrate-replay-") as folder:
        return _play(options, recording, streams, Path(folder), out)


def _read(folder: Path) -> Recording:
    began = time.monotonic()
    try:
        session = finished_session(folder)
        begin, end = played_span(session)
        counts = {
            "robot": len(session.states),
            "cameras": len(session.all_frames),
            "sensor": len(session.samples),
        }
        samples = session.samples
    except SessionError as error:
        cli.fail(str(error))
    there = {name: count for name, count in counts.items() if count}
    return Recording(
        session.folder.resolve(), end - begin, there, samples, time.monotonic() - began
    )


def _streams(options: ReplayOptions, recording: Recording, out: Console) -> list[str]:
    """The streams to play: those asked for that were recorded."""
    for name in options.streams:
        if name not in recording.counts:
            out.print(f"{name}: nothing recorded, left out", markup=False)
    streams = [name for name in STREAMS if name in options.streams and name in recording.counts]
    if not streams:
        cli.fail(f"{recording.folder}: nothing to play in it")
    return streams


def _play(
    options: ReplayOptions, recording: Recording, streams: Sequence[str], logs: Path, out: Console
) -> int:
    # The senders read the recording too, at the same time.
    lead_s = options.lead or _LEAD_S + 4 * recording.read_s
    start_at = wall() + lead_s
    played = Played(recording.seconds, recording.counts, options.speed, options.loop)
    programs: list[Program] = []
    complete = True
    progress = Progress(played, start_at, programs, out)
    try:
        for name in streams:
            arguments = _arguments(name, options, recording, start_at, logs)
            programs.append(start(f"{name} sender", arguments, logs / f"{name}_sender.log"))
        with stopping(None if options.duration is None else lead_s + options.duration) as stop:
            complete = _watch(programs, progress, stop)
    except KeyboardInterrupt:  # before the signals were taken over
        pass
    finally:
        trouble = stop_all(programs)
    progress.end()
    for line in trouble:
        out.print(line, style="red", markup=False)
    return 1 if trouble or not complete else 0


def _arguments(
    name: str, options: ReplayOptions, recording: Recording, start_at: float, logs: Path
) -> list[str]:
    playing = ["--driver", "replay", "--driver-options", f"session={recording.folder}"]
    playing += [f"speed={options.speed!r}", f"loop={str(options.loop).lower()}"]
    playing += [f"start_at={start_at!r}"]
    playing += ["--time-port", str(endpoints.TIME.port + options.port_offset)]
    if name == "robot":
        port = options.robot_port + options.port_offset
        robot = ["senders/robot_sender.py", "--robot", "on", "--port", str(port)]
        robot += ["--action-host", options.server_ip]  # where it asks for the time
        return [*robot, "--output-dir", str(logs / "Robot_Data"), *playing]
    if name == "cameras":
        port = options.camera_port + options.port_offset
        cameras = ["senders/jetson_camera_sender.py", "--port", str(port)]
        return [*cameras, "--server-ip", options.server_ip, *playing]
    port = options.sensor_port + options.port_offset
    sensor = ["senders/force_sensor_sender.py", "--port", str(port)]
    sensor += ["--server-ip", options.server_ip, "--batch", str(batch_of(recording.samples))]
    sensor += ["--rate-hz", f"{rate_of(recording.samples) * options.speed:.6g}"]
    return [*sensor, *playing]


def batch_of(samples: Samples) -> int:
    """Samples in most of a recording's datagrams, as far as they fit into one; 10 if not known."""
    most = min(max_samples(), max_samples(samples.alines.shape[1]))
    sizes = Counter(rows.stop - rows.start for rows in samples.datagrams())
    known = np.isfinite(samples.received_at).all()
    if not known and (samples.send_timestamps == samples.timestamps).all():
        return min(10, most)
    size: int = sizes.most_common(1)[0][0]
    return min(size, most)


def rate_of(samples: Samples) -> float:
    """Samples a second, within what the sender takes."""
    seconds = float(np.ptp(samples.sampled_at)) if len(samples) > 1 else 0.0
    rate = (len(samples) - 1) / seconds if seconds > 0 else endpoints.SENSOR.rate_hz
    return min(max(rate, 1.0), 10_000.0) if rate > 0 else endpoints.SENSOR.rate_hz


def _watch(programs: Sequence[Program], progress: Progress, stop: Event) -> bool:
    """Wait until all are over, one has failed, or a stop is asked for; False when it takes long."""
    while not stop.wait(POLL_S):
        codes = [program.process.poll() for program in programs]
        if any(codes) or all(code == 0 for code in codes):
            break
        if progress.overdue:
            progress.say_overdue()
            return False
        progress.show()
    return True


if __name__ == "__main__":
    sys.exit(main())
