"""What came of a soak: every robot's commands against its limits, recoveries, leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from scripts.command_log import CommandLog, Limits, violations
from scripts.serving_rig import joints_of, stamped_ages
from scripts.soak_faults import Happened
from scripts.soak_samples import Growth, Sample, growth

__all__ = ["RobotVerdict", "judged", "lifetimes", "robot_table"]

_SLACK_S = 0.25
"""How long a busy computer may take from reading its clock to the command that follows."""
_SHORTEST_REST_S = 2.0
_LEAST_MOVING = 0.9
"""Share of the control ticks in which a robot moves, once it had the time to recover."""
_LAST_S = 2.0
"""No robot stands for longer at the end of the run."""


@dataclass(frozen=True, slots=True)
class RobotVerdict:
    """One robot's soak.

    Attributes:
        name: which one, and its transport.
        moves: commands to move.
        moving: share of control ticks in which it moved.
        sessions: how many its client had.
        holds: how often it was told to stay, by reason.
        oldest_s: the oldest input behind a motion, seconds.
        recoveries_s: from the end of each fault to the next motion, infinite where there is none.
        broken: what went wrong, a line each.
    """

    name: str
    moves: int
    moving: float
    sessions: int
    holds: Mapping[str, int]
    oldest_s: float
    recoveries_s: tuple[float, ...]
    broken: tuple[str, ...]


def judged(
    name: str,
    log: CommandLog,
    summary: Mapping[str, Any],
    happened: Sequence[Happened],
    *,
    age_s: float,
    recover_s: float,
    fps: float,
) -> RobotVerdict:
    """Look at everything that a robot was told."""
    broken = violations(joints_of(log), Limits(fps=fps))
    ages = stamped_ages(log)
    oldest = float(ages.max()) if len(ages) else 0.0
    if oldest > age_s + _SLACK_S:
        old = int((ages > age_s + _SLACK_S).sum())
        broken.append(f"{old} motions from input of up to {oldest:.2f} s, at most {age_s:g}")
    moves_at = log.moves_at
    end = float(log.at[-1]) if len(log.at) else -math.inf
    recoveries = []
    for one, following in zip(happened, [*happened[1:], None], strict=False):
        until = end if following is None else following.began_at
        if until - one.healed_at < _SHORTEST_REST_S:
            continue  # the run ended with it
        index = int(np.searchsorted(moves_at, one.healed_at))
        took = float(moves_at[index]) - one.healed_at if index < len(moves_at) else math.inf
        recoveries.append(took)
        if took > min(recover_s, until - one.healed_at):
            broken.append(f"no motion for {took:.1f} s after {one.fault.kind}")
        elif (share := _moving(moves_at, one.healed_at + recover_s, until, fps)) < _LEAST_MOVING:
            broken.append(f"motion in {share:.0%} of the ticks after {one.fault.kind}")
    if not len(moves_at):
        broken.append("it never moved")
    else:
        recovered_at = happened[-1].healed_at + recover_s if happened else -math.inf
        if (still_s := end - max(float(moves_at[-1]), recovered_at)) > _LAST_S:
            broken.append(f"no motion in the last {still_s:.1f} s")
    return RobotVerdict(
        name,
        moves=len(moves_at),
        moving=summary["moves"] / max(summary["steps"], 1),
        sessions=summary["sessions"],
        holds=summary["holds"],
        oldest_s=oldest,
        recoveries_s=tuple(recoveries),
        broken=tuple(broken),
    )


def _moving(moves_at: NDArray[np.float64], begin: float, end: float, fps: float) -> float:
    """Share of the control ticks with a motion; of fewer than three nothing can be said: 1."""
    ticks = (end - begin) * fps - 2.0  # one at either end may lie just outside
    moves = int(np.searchsorted(moves_at, end) - np.searchsorted(moves_at, begin))
    return moves / ticks if ticks >= 1.0 else 1.0


def lifetimes(samples: Mapping[str, Sequence[Sample]], warm_s: float) -> dict[str, Growth]:
    """Growth of each process that lived long enough; a restarted server is another process."""
    found = {}
    for name, all_of_it in samples.items():
        for number, pid in enumerate(dict.fromkeys(sample.pid for sample in all_of_it), 1):
            grown = growth([sample for sample in all_of_it if sample.pid == pid], warm_s)
            if grown is not None:
                found[name if number == 1 else f"{name} ({number})"] = grown
    return found


def robot_table(verdicts: Sequence[RobotVerdict], grown: Mapping[str, Growth]) -> Table:
    """A row a robot, then a row for the server's longest life."""
    table = Table(title="four robots on one server")
    for head in (
        "",
        "moves",
        "moving",
        "sessions",
        "oldest input s",
        "recovered",
        "p50 s",
        "max s",
    ):
        table.add_column(head, justify="right" if head else "left")
    for head in ("memory MB", "files", "threads", "broken"):
        table.add_column(head, justify="right")
    for verdict in verdicts:
        times = [took for took in verdict.recoveries_s if math.isfinite(took)]
        table.add_row(
            verdict.name,
            f"{verdict.moves:,}",
            f"{verdict.moving:.1%}",
            str(verdict.sessions),
            f"{verdict.oldest_s:.2f}",
            f"{len(times)} of {len(verdict.recoveries_s)}",
            f"{np.median(times):.2f}" if times else "-",
            f"{max(times):.2f}" if times else "-",
            *_grown(grown.get(verdict.name)),
            str(len(verdict.broken)),
        )
    for name, found in grown.items():
        if name.startswith("server"):
            table.add_row(name, *[""] * 7, *_grown(found), str(len(found.leaks)))
    return table


def _grown(found: Growth | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return (
        f"{found.first_mb:.0f} {found.rss_mb:+.1f}",
        f"{found.files:+.0f}",
        f"{found.threads:+.0f}",
    )


def as_json(verdict: RobotVerdict) -> dict[str, Any]:
    """For the file; a recovery that never came is null."""
    content = asdict(verdict)
    content["recoveries_s"] = [
        took if math.isfinite(took) else None for took in verdict.recoveries_s
    ]
    return content
