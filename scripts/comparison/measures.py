"""What a run says: errors against the recording, how evenly commands came. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scripts.comparison.trajectory import Trajectory

__all__ = ["METHODS", "TITLES", "Figures", "Method", "Outcome", "Told", "figures_of", "laid_out"]

Method: TypeAlias = Literal["synchronous", "threaded", "server-client", "dual-rate"]
METHODS: tuple[Method, ...] = ("synchronous", "threaded", "server-client", "dual-rate")
TITLES: dict[Method, str] = {
    "synchronous": "synchronous: predict, then move",
    "threaded": "threaded: prediction in a thread beside the control loop",
    "server-client": "server-client: prediction in another process, over ZeroMQ",
    "dual-rate": "dual-rate: slow features from another process, a fast act at every tick",
}
_STALL_PERIODS = 2.5
"""A pause between two commands counts as a stall from so many periods on: two missed ticks."""

Rows: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Told:
    """What a robot was told in a run, as it happened.

    Attributes:
        ticks: (K,) control tick of each command, counted from the first motion's, rising.
        at: (K,) monotonic seconds of each.
        targets: (K, A) as sent; of a hold where the joints were.
        is_move: (K,) whether it was an action; otherwise a hold.
        input_ages_s: seconds from the oldest input behind an action to the action, one each.
        measured: (N, A) where the joints were at each tick of the grid.
    """

    ticks: NDArray[np.int64]
    at: Rows
    targets: Rows
    is_move: NDArray[np.bool_]
    input_ages_s: Rows
    measured: Rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run on the grid of the recording: row k is tick k, k / rate seconds after the first motion.

    Attributes:
        method: which architecture.
        delay_s: the artificial inference delay.
        times_s: (N,).
        recorded: (N, A) what the recording holds then.
        commanded: (N, A) what the robot was told last.
        measured: (N, A) where the robot was.
        fresh: (N,) whether a new action came at this tick.
        gaps_s: pauses between two actions, and from the last one to the end.
        input_ages_s: seconds from the oldest input behind an action to the action, one each.
    """

    method: Method
    delay_s: float
    times_s: Rows
    recorded: Rows
    commanded: Rows
    measured: Rows
    fresh: NDArray[np.bool_]
    gaps_s: Rows
    input_ages_s: Rows


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table.

    Attributes:
        mae, rmse: (A,) of the commands against the recording, by joint.
        mae_all, rmse_all: the same over all joints.
        robot_mae_all: mean absolute error of where the robot was.
        rate_hz: actions a second.
        longest_gap_s: the longest time from one action to the next.
        stalls: pauses of more than two and a half periods.
        stall_s: their median; 0.0 where there are none.
        without: share of ticks without a fresh action.
        input_age_s: median age of the oldest input behind an action; NaN without any action.
    """

    mae: Rows
    rmse: Rows
    mae_all: float
    rmse_all: float
    robot_mae_all: float
    rate_hz: float
    longest_gap_s: float
    stalls: int
    stall_s: float
    without: float
    input_age_s: float


def laid_out(method: Method, delay_s: float, trajectory: Trajectory, told: Told) -> Outcome:
    """A run on the grid of `trajectory`; the first of `told` is an action at tick 0.

    Between two commands the last one counts: a robot that is told nothing goes where it was told.
    Commands behind the trajectory's end are left out.
    """
    rows = len(trajectory)
    kept = told.ticks < rows
    ticks, moves = told.ticks[kept], told.is_move[kept]
    if not len(ticks) or ticks[0] != 0 or not moves[0]:
        raise ValueError("a run begins with an action at tick 0")
    newest = np.searchsorted(ticks, np.arange(rows), side="right") - 1
    fresh = np.zeros(rows, np.bool_)
    fresh[ticks[moves]] = True
    at = told.at[kept][moves]
    end = at[0] + rows * trajectory.period_s
    return Outcome(
        method,
        delay_s,
        trajectory.times_s,
        trajectory.positions,
        told.targets[kept][newest],
        told.measured,
        fresh,
        np.diff(np.append(at, max(float(end), float(at[-1])))),
        told.input_ages_s[: int(moves.sum())],
    )


def figures_of(outcome: Outcome) -> Figures:
    """Errors at the same time since the start, and how evenly the actions came."""
    error = outcome.commanded - outcome.recorded
    seconds = float(outcome.times_s[-1] + outcome.times_s[1])
    period_s = float(outcome.times_s[1])
    stalls = outcome.gaps_s[outcome.gaps_s > _STALL_PERIODS * period_s]
    ages = outcome.input_ages_s
    return Figures(
        mae=np.abs(error).mean(axis=0),
        rmse=np.sqrt((error**2).mean(axis=0)),
        mae_all=float(np.abs(error).mean()),
        rmse_all=float(np.sqrt((error**2).mean())),
        robot_mae_all=float(np.abs(outcome.measured - outcome.recorded).mean()),
        rate_hz=float(outcome.fresh.sum()) / seconds,
        longest_gap_s=float(outcome.gaps_s.max()),
        stalls=len(stalls),
        stall_s=float(np.median(stalls)) if len(stalls) else 0.0,
        without=1.0 - float(outcome.fresh.mean()),
        input_age_s=float(np.median(ages)) if len(ages) else math.nan,
    )
