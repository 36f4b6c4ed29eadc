"""Where the receiver's processor time goes under a rig's full load, by thread and function.

Needs py-spy: pip install py-spy. Linux asks for root or a ptrace scope of 0.

python scripts/profile_receiver.py --seconds 20
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from common import cli
from common.priority import fast_loop_first
from scripts.benches import BenchOutput, Comparison, report
from scripts.loaded_receiver import (
    Load,
    Machine,
    make_checkpoint,
    receiver_arguments,
    run_under_load,
)
from scripts.processes import ROOT

_OURS = tuple(f"{package}/" for package in ("common", "policies", "receiver"))
_SETTLE_S = 3.0


@dataclass(frozen=True)
class ProfileOptions:
    """Profile the receiver and its slow half's process under a rig's full load."""

    seconds: float = 20.0
    """How long to look."""
    rate_hz: float = 10.0
    """The fast loop's clock."""
    reuse: int = 4
    """Actions a vision-language feature serves."""
    samples_hz: int = 200
    """Looks a second."""
    checkpoint: Path = Path("runs/tiny-checkpoint")
    """The policy; the small one is made when nothing is there."""
    port_offset: int = 3700
    """Added to every port."""
    load: Load = field(default_factory=Load)
    output: BenchOutput = field(default_factory=BenchOutput)


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples in which a thread was on a processor, by thread and by the function of ours."""

    threads: Counter[str]
    functions: Counter[tuple[str, str]]

    @property
    def whole(self) -> int:
        """All of them."""
        return self.threads.total()


def read_collapsed(lines: Iterable[str]) -> Profile:
    """Add up what `py-spy record --format raw --threads` wrote: `frame;frame;… count` a line.

    A sample counts for the innermost function of this project on its stack: what a library does is
    the cost of whoever called it.
    """
    profile = Profile(Counter(), Counter())
    for line in lines:
        stack, _, count = line.rstrip("\n").rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = stack.split(";")
        processes = [frame for frame in frames if frame.startswith("process ")]
        named = [m[1] for frame in frames if (m := re.match(r"thread \(\w+\): (.+)", frame))]
        thread = named[0] if named else "main"
        if len(processes) > 1:  # one inside the other: the receiver's child
            thread = f"slow half's process: {thread}"
        ours = [frame for frame in frames if any(part in frame for part in _OURS)]
        function = re.sub(r":\d+\)", ")", ours[-1]) if ours else frames[-1]
        profile.threads[thread] += int(count)
        profile.functions[thread, function] += int(count)
    return profile


def py_spy() -> str | None:
    """Where py-spy is: beside this interpreter or on the path; None where it is not."""
    beside = Path(sys.executable).parent
    return shutil.which("py-spy", path=str(beside)) or shutil.which("py-spy")


def _record(process: int, options: ProfileOptions, path: Path, failed: list[str]) -> None:
    program = py_spy()
    if program is None:
        failed.append("py-spy is missing: pip install py-spy")
        return
    command = [program, "record"]
    command += ["--pid", str(process), "--format", "raw", "--output", str(path), "--threads"]
    command += ["--subprocesses", "--nonblocking", "--rate", str(options.samples_hz)]
    command += ["--duration", str(max(round(options.seconds), 1))]
    try:
        # The loops it looks at run before all others: it must not see them only when they pause.
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=fast_loop_first,
        )
    except OSError as error:
        failed.append(f"py-spy cannot be run: {error}")
        return
    if done.returncode != 0:
        failed.append(f"py-spy ended with {done.returncode}: {done.stderr[-300:]}")


def rows(profile: Profile, cpu_ms_s: float) -> list[Comparison]:
    """The three largest costs, as shares of all processor time."""
    found = []
    for (thread, function), count in profile.functions.most_common(3):
        share = count / max(profile.whole, 1)
        figure = f"{100 * share:.0f}% of {cpu_ms_s:.0f} ms/s"
        found.append(Comparison(f"{function}, thread {thread}", figure))
    return found


def _show(profile: Profile) -> None:
    for title, counts in (
        ("by thread", [(name, "", count) for name, count in profile.threads.most_common(8)]),
        (
            "by function of ours (with what it calls in libraries)",
            [(f, thread, count) for (thread, f), count in profile.functions.most_common(12)],
        ),
    ):
        table = Table("", "thread", "share", title=title)
        for name, thread, count in counts:
            table.add_row(name, thread, f"{100 * count / max(profile.whole, 1):.1f}%")
        Console(width=130).print(table)


def draw(profile: Profile, folder: Path) -> Path:
    """The largest costs as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    largest: Sequence[tuple[tuple[str, str], int]] = profile.functions.most_common(12)[::-1]
    figure, axes = plt.subplots(figsize=(16, 9), dpi=100)
    labels = [f"{function}\n{thread}" for (thread, function), _ in largest]
    axes.barh(labels, [100 * count / max(profile.whole, 1) for _, count in largest])
    axes.set_xlabel("share of the receiver's processor time, %", fontsize=15)
    axes.set_title("Where the receiver's processor time goes", fontsize=18)
    axes.tick_params(labelsize=11)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "profile.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def main() -> int:
    """Run, look, add up; the exit code."""
    options = cli.parse(ProfileOptions)
    machine = Machine()
    make_checkpoint(options.checkpoint)
    arguments = receiver_arguments(options.checkpoint.resolve(), options.rate_hz, options.reuse)
    failed: list[str] = []
    with TemporaryDirectory(prefix="profile-") as name:
        path = Path(name) / "stacks.txt"
        run = run_under_load(
            arguments,
            options.load,
            options.rate_hz,
            options.seconds + _SETTLE_S,
            Path(name) / "run",
            options.port_offset,
            lambda process: _record(process, options, path, failed),
        )
        if failed or not path.exists():
            cli.fail(failed[0] if failed else "py-spy wrote nothing", 1)
        profile = read_collapsed(path.read_text(encoding="utf-8").splitlines())
    _show(profile)
    report("the receiver's three largest costs", rows(profile, run.cpu_ms_s), options.output)
    print(machine.line())
    print(f"plot  {draw(profile, options.output.plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
