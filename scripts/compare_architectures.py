"""One recorded trajectory, one policy, four ways to run it: does the robot wait for the model?

    python scripts/compare_architectures.py assets/example_bag --delays 0.8 0

Runs in real time: a trajectory of 58 s takes about four minutes for each delay. docs/comparison.md
says what is compared, and what is not.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "serving", "bags")

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from common.priority import fast_loop_first, slow_half_behind, this_process_first
from common.program import OptionError
from common.stopping import stopping
from scripts.benches import wide_console
from scripts.comparison.measures import METHODS, Method, figures_of
from scripts.comparison.plots import draw_errors, draw_joints, draw_method
from scripts.comparison.reading import Angles, read_trajectory
from scripts.comparison.runs import FollowServer, RunError, Setup, Stopped, run
from scripts.comparison.tables import Line, as_rich, write_motions, write_table
from scripts.comparison.trajectory import Trajectory, TrajectoryError
from serving.aggregation import choose
from serving.messages import MAX_ROWS

__all__ = ["CompareOptions", "main"]

_LONG_GAP_S = 0.5


@dataclass(frozen=True)
class CompareOptions:
    """Run one policy on a recorded trajectory in four architectures, and compare."""

    recording: Annotated[Path, tyro.conf.Positional] = Path("assets/example_bag")
    """A ROS 1 .bag, the folder of a ROS 2 bag, an .mcap, or a recorded session's folder."""
    delays: tuple[float, ...] = (0.8, 0.0)
    """Artificial inference delays, seconds; a study each."""
    delay_s: float | None = None
    """One delay instead of --delays."""
    methods: tuple[Method, ...] = METHODS
    """Which architectures."""
    seconds: float | None = None
    """Use the first so many seconds of the trajectory."""
    hz: float = 50.0
    """Control rate; the trajectory is resampled to it."""
    chunk_size: int = 100
    """Rows of an action chunk, and of what the slow half's features hold."""
    threshold: float = 0.5
    """Ask for the next chunk when at most this part of one is queued."""
    aggregate_fn_name: str = "weighted_average"
    """For actions both queued and new: weighted_average, latest_only, average, conservative."""
    busy: bool = False
    """Predictions compute in Python instead of waiting: a thread beside the control loop then takes
    the interpreter from it."""
    topic: str = ""
    """Topic of a bag with sensor_msgs/JointState; by default the first that ends in joint_states,
    else the first."""
    joints: tuple[str, ...] = ()
    """Joints to use, in this order; by default all."""
    angles: Angles = "radians"
    """What a bag's positions are in."""
    out: Path = Path("runs/comparison")
    """Folder for the results; what is there is replaced."""

    @property
    def all_delays(self) -> tuple[float, ...]:
        """The delays to run with."""
        return self.delays if self.delay_s is None else (self.delay_s,)

    def __post_init__(self) -> None:
        """ValueError, one line, for what cannot be run."""
        if not self.all_delays or not all(0.0 <= delay <= 20.0 for delay in self.all_delays):
            raise ValueError("--delays must be from 0 to 20 s each")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError("--methods must name each architecture once")
        if not 5.0 <= self.hz <= 500.0:
            raise ValueError("--hz must be from 5 to 500")
        if not 2 <= self.chunk_size <= MAX_ROWS or not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"--chunk-size must be 2 to {MAX_ROWS}, --threshold from 0 to 1")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 1.0):
            raise ValueError("--seconds must be 1 or more")
        try:
            choose(self.aggregate_fn_name)
        except OptionError as error:
            raise ValueError(str(error)) from None

    def warnings(self) -> Iterator[str]:
        """What will not go well, in words."""
        span_s, longest_s = self.chunk_size / self.hz, max(self.all_delays)
        if self.threshold * span_s <= longest_s + 2 / self.hz:
            yield (
                f"{self.threshold:g} of a chunk is {self.threshold * span_s:g} s, a prediction "
                f"takes {longest_s:g} s: the queue will run empty; give a larger --chunk-size or "
                "--threshold"
            )
        if "dual-rate" in self.methods and span_s <= 2 * longest_s + 0.1:
            yield (
                f"features that hold {span_s:g} s end before the next come, which takes up to "
                f"twice {longest_s:g} s: dual-rate will hold; give a larger --chunk-size"
            )


def main() -> int:
    """Read, run, show, draw; the exit code: 1 when a run failed, 130 when it was stopped."""
    options = cli.parse(CompareOptions)
    out = wide_console()
    if importlib.util.find_spec("matplotlib") is None:  # better said now than after minutes
        cli.fail("the pictures need matplotlib: pip install '.[serving]'")
    trajectory = _read(options)
    _say_what(trajectory, options, out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        _log_to(options.out / "run.log")
        # The server first: it is started while no other thread runs.
        with FollowServer(trajectory, options.out) as server, stopping() as stop:
            lines = _run_all(options, trajectory, server, stop, out)
            write_table(lines, trajectory.names, options.out)
            for delay_s in options.all_delays:
                _draw([line for line in lines if line[0].delay_s == delay_s], trajectory, options)
    except (RunError, TrajectoryError) as error:
        cli.fail(str(error), 1)
    except Stopped:
        out.print("stopped; nothing was compared")
        return 130
    except OSError as error:
        cli.fail(f"{error.filename or options.out}: {error.strerror}; --out names a folder", 1)
    out.print(
        as_rich(lines, f"{trajectory.source}: {trajectory.seconds:.1f} s at {options.hz:g} Hz")
    )
    out.print(f"figures, CSV files and pictures: {escape(str(options.out))}")
    return 0


def _read(options: CompareOptions) -> Trajectory:
    try:
        whole = read_trajectory(
            options.recording,
            options.hz,
            topic=options.topic,
            joints=options.joints,
            angles=options.angles,
        )
        return whole if options.seconds is None else whole.first(options.seconds)
    except TrajectoryError as error:
        cli.fail(str(error))


def _say_what(trajectory: Trajectory, options: CompareOptions, out: Console) -> None:
    runs = len(options.all_delays) * len(options.methods)
    out.print(
        f"{escape(trajectory.source)}: {trajectory.seconds:.1f} s of "
        f"{escape(', '.join(trajectory.names))}; {runs} runs in real time, about "
        f"{runs * (trajectory.seconds + 2) / 60:.1f} minutes"
    )
    if trajectory.longest_gap_s > _LONG_GAP_S:
        out.print(
            "[yellow]warning:[/yellow] the recording has a gap of "
            f"{trajectory.longest_gap_s:.1f} s, bridged by straight lines"
        )
    for line in options.warnings():
        out.print(f"[yellow]warning:[/yellow] {escape(line)}")


def _log_to(path: Path) -> None:
    """What the control loop and the connection say goes into a file."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(relativeCreated)9.0f ms %(message)s"))
    logging.getLogger().handlers = [handler]
    logging.getLogger("serving").setLevel(logging.INFO)


def _run_all(
    options: CompareOptions,
    trajectory: Trajectory,
    server: FollowServer,
    stop: threading.Event,
    out: Console,
) -> list[Line]:
    lines: list[Line] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    # As the robot client does: before other programs, where the system permits it.
    _ = this_process_first() and fast_loop_first()
    # Drawn once a second at most: the control loop shares its interpreter.
    with Progress(*columns, console=out, transient=True, refresh_per_second=1) as progress:
        runs = [(d, m) for d in options.all_delays for m in options.methods]
        task = progress.add_task("", total=len(runs))
        for number, (delay_s, method) in enumerate(runs):
            progress.update(task, description=f"{method}, {delay_s:g} s")
            logging.getLogger("serving").info("-- %s, delay %g s", method, delay_s)
            setup = Setup(
                trajectory,
                delay_s,
                options.chunk_size,
                options.threshold,
                options.aggregate_fn_name,
                options.busy,
            )

            def show(share: float, number: int = number) -> None:
                progress.update(task, completed=number + share)

            outcome = run(method, setup, server, stop, show)
            lines.append((outcome, figures_of(outcome)))
    slow_half_behind()  # what follows is not in real time
    return lines


def _draw(lines: Sequence[Line], trajectory: Trajectory, options: CompareOptions) -> None:
    """The files of one delay."""
    names = trajectory.names
    folder = options.out / f"delay_{lines[0][0].delay_s:g}s"
    for outcome, figures in lines:
        own = folder / outcome.method
        own.mkdir(parents=True, exist_ok=True)
        write_motions(outcome, names, own)
        draw_method(outcome, figures, names, own / "all_joints_comparison.png")
    draw_joints([outcome for outcome, _ in lines], names, folder / "comparison_joints.png")
    draw_errors(lines, names, folder / "comparison_errors.png")


if __name__ == "__main__":
    sys.exit(main())
