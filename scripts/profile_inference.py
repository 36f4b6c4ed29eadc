"""How long a policy's predictions take over chunk and buffer sizes, and whether the queue lasts.

    python scripts/profile_inference.py
    python scripts/profile_inference.py --policy PATH --policy-type act --device cuda

The chunk is how many actions a prediction gives. The buffer is how many are still queued when the
next prediction is asked for: what the robot lives off until it comes.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "serving")

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from common.stopping import stopping
from scripts.benches import wide_console
from scripts.comparison.profiling import Profile, Profiled, ProfileError, Profiler, with_rows
from scripts.comparison.profiling_plot import draw
from scripts.processes import start, stop_all
from scripts.serving_rig import RigError, ServingRig
from serving.messages import MAX_ROWS

__all__ = ["ProfileOptions", "main"]

_TINY = "scripts/make_tiny_checkpoint.py"
_MAKING_S = 300.0
_HEADS: tuple[str, ...] = (
    "chunk",
    "rows given",
    "buffer",
    "predictions",
    "inference p50 ms",
    "p95 ms",
)
_HEADS += ("answer p50 ms", "answer p95 ms", "buffer lasts ms", "actions/s", "queue empty")


@dataclass(frozen=True)
class ProfileOptions:
    """Time predictions over chunk and buffer sizes, through a real server and control loop."""

    policy: str = ""
    """What to load; by default the small policy (random weights), made anew for each chunk size
    with as many rows. Any other gives as many rows as it gives."""
    policy_type: str = "qwen_vla"
    """Its type: qwen_vla, builtin, or one of LeRobot's."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, auto."""
    server: str = ""
    """HOST:PORT of a policy server's ZeroMQ end that runs already; by default one is started."""
    chunk_sizes: tuple[int, ...] = (5, 10, 25, 50)
    """Actions asked for at once."""
    buffer_sizes: tuple[int, ...] = (5, 10, 25, 50)
    """Actions still queued when the next are asked for; those above the chunk are left out."""
    fps: float = 30.0
    """Control ticks a second."""
    predictions: int = 20
    """How many are measured for each setting."""
    most_seconds: float = 30.0
    """But for no longer than this each."""
    cameras: tuple[str, ...] = ("View1", "View2", "View3", "View4", "View5")
    """Names of the simulated robot's cameras, as the policy knows them."""
    width: int = 640
    """Pixels across."""
    height: int = 360
    """Pixels down."""
    joints: int = 6
    """Of the simulated robot."""
    sensor_channels: int = 1026
    """Values in a sample of its force sensor; 0 for none."""
    task: str = ""
    """The instruction."""
    out: Path = Path("runs/profile")
    """Folder for the table and the picture."""

    def __post_init__(self) -> None:
        """ValueError, one line, for what cannot be run."""
        for name in ("chunk_sizes", "buffer_sizes"):
            sizes = getattr(self, name)
            if not sizes or not all(1 <= size <= MAX_ROWS for size in sizes):
                raise ValueError(f"--{name.replace('_', '-')} must be from 1 to {MAX_ROWS} each")
        if min(self.buffer_sizes) > max(self.chunk_sizes):
            raise ValueError("no buffer is as small as a chunk: a queue holds a chunk at most")
        if not 1.0 <= self.fps <= 1000.0 or not 1 <= self.predictions <= 1000:
            raise ValueError("--fps must be from 1 to 1000, --predictions too")
        if not (math.isfinite(self.most_seconds) and self.most_seconds >= 1.0):
            raise ValueError("--most-seconds must be 1 or more")
        if self.policy_type != "qwen_vla" and not self.policy:
            raise ValueError(f"--policy must say which {self.policy_type}")
        if self.server and not self.policy:
            raise ValueError("--server needs --policy: a path as that server sees it")

    @property
    def robot(self) -> dict[str, Any]:
        """Options of the simulated arm."""
        return {
            "joints": self.joints,
            "cameras": {name: {} for name in self.cameras},
            "width": self.width,
            "height": self.height,
            "sensor_channels": self.sensor_channels,
        }


def main() -> int:
    """Measure, show, draw; the exit code.

    1 when something failed, 2 for an option or a missing package, 130 when it was stopped.
    """
    options = cli.parse(ProfileOptions)
    out = wide_console()
    logging.getLogger("serving").setLevel(logging.CRITICAL)
    profiles: list[Profile] = []
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="profile-")))
            # Other programs first: they are started while no other thread runs.
            if not options.policy:
                _make_small(folder / "small")
            address = stack.enter_context(_server(options, folder))
            stop = stack.enter_context(stopping())
            with Progress(console=out, transient=True) as progress:
                task = progress.add_task("chunk sizes", total=len(options.chunk_sizes))
                for found in _profiles(options, address, folder, stop):
                    profiles += found
                    progress.advance(task)
            if stop.is_set():
                return 130
        _write(profiles, options.out / "profile.csv")
        draw(profiles, options.fps, options.out / "profile.png")
    except (ProfileError, RigError) as error:
        cli.fail(str(error), 1)
    except OSError as error:
        cli.fail(f"{error.filename or options.out}: {error.strerror}", 1)
    out.print(_table(profiles, options))
    out.print(f"table and picture: {escape(str(options.out))}")
    return 0


@contextlib.contextmanager
def _server(options: ProfileOptions, folder: Path) -> Iterator[str]:
    """The address of the server to ask."""
    if options.server:
        yield options.server
        return
    with contextlib.closing(ServingRig(folder, {"max_policies": 1})) as rig:
        rig.start_server()
        yield f"127.0.0.1:{rig.port('zmq')}"


def _profiles(
    options: ProfileOptions, address: str, folder: Path, stop: threading.Event
) -> Iterator[list[Profile]]:
    """One list for each chunk size."""
    what = Profiled(
        address,
        options.policy_type,
        options.device,
        options.robot,
        options.fps,
        options.predictions,
        options.most_seconds,
        options.task,
    )
    profiler = Profiler(what, stop)
    for chunk in options.chunk_sizes:
        path = options.policy
        if not path:
            made = folder / f"rows{chunk}"
            with_rows(folder / "small", chunk, made)
            path = str(made)
        rows = profiler.rows_of(path, chunk)
        buffers = [size for size in options.buffer_sizes if size <= rows]
        found = []
        for buffer in buffers:
            if stop.is_set():
                return
            found.append(profiler.run(path, chunk, rows, buffer))
        yield found


def _make_small(out: Path) -> None:
    maker = start("the small policy", [_TINY, "--out", str(out)], out.with_suffix(".log"))
    try:
        code = maker.process.wait(_MAKING_S)
    finally:
        stop_all([maker])
    if code:
        # 2 where it lacks a package, as here.
        cli.fail(f"no policy could be made: {maker.last_words(1)}", 2 if code == 2 else 1)


def _cells(profile: Profile, fps: float) -> list[str]:
    return [
        str(profile.chunk),
        str(profile.rows),
        str(profile.buffer),
        str(len(profile.inference_s)),
        f"{profile.inference_ms(50):.1f}",
        f"{profile.inference_ms(95):.1f}",
        f"{profile.answer_ms(50):.1f}",
        f"{profile.answer_ms(95):.1f}",
        f"{1e3 * profile.buffer / fps:.0f}",
        f"{profile.rate_hz:.2f}",
        f"{profile.empty:.1%}",
    ]


def _table(profiles: Sequence[Profile], options: ProfileOptions) -> Table:
    name = options.policy or "the small policy, random weights"
    table = Table(
        title=f"{options.policy_type}: {escape(name)} on {options.device}, {options.fps:g} Hz"
    )
    for head in _HEADS:
        table.add_column(head, justify="right")
    for profile in profiles:
        table.add_row(*_cells(profile, options.fps))
    return table


def _write(profiles: Sequence[Profile], path: Path) -> None:
    head = ["chunk", "rows", "buffer", "predictions", "inference_p50_ms", "inference_p95_ms"]
    head += ["answer_p50_ms", "answer_p95_ms", "rate_hz", "empty_share"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for p in profiles:
            whole = [p.chunk, p.rows, p.buffer, len(p.inference_s)]
            times = [p.inference_ms(50), p.inference_ms(95), p.answer_ms(50), p.answer_ms(95)]
            numbers = [*times, p.rate_hz, p.empty]
            writer.writerow([*whole, *(f"{number:.6g}" for number in numbers)])


if __name__ == "__main__":
    sys.exit(main())
