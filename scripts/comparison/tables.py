"""The comparison in figures: the motions as CSV; the table as CSV, markdown and for a terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from scripts.comparison.measures import Figures, Outcome

__all__ = ["Line", "as_markdown", "as_rich", "write_motions", "write_table"]

Line = tuple[Outcome, Figures]
_TIMING: tuple[str, ...] = (
    "method",
    "delay s",
    "actions/s",
    "longest gap ms",
    "stalls",
    "stall ms (median)",
)
_TIMING += ("without fresh action", "input age ms (median)", "MAE °", "RMSE °", "robot MAE °")


def write_motions(outcome: Outcome, names: Sequence[str], folder: Path) -> None:
    """`org.csv` (recorded), `infer.csv` (commanded) and `measured.csv`, rows of the same times."""
    for name, rows in (
        ("org.csv", outcome.recorded),
        ("infer.csv", outcome.commanded),
        ("measured.csv", outcome.measured),
    ):
        _write_rows(folder / name, ("time_s", *names), outcome.times_s, rows)


def _write_rows(
    path: Path, head: Sequence[str], times: NDArray[np.float64], rows: NDArray[np.float64]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for at, row in zip(times.tolist(), rows.tolist(), strict=True):
            writer.writerow([f"{at:.3f}", *(f"{value:.6f}" for value in row)])


def _timing(line: Line) -> tuple[str, ...]:
    outcome, figures = line
    return (
        outcome.method,
        f"{outcome.delay_s:g}",
        f"{figures.rate_hz:.2f}",
        f"{1e3 * figures.longest_gap_s:.0f}",
        str(figures.stalls),
        f"{1e3 * figures.stall_s:.0f}" if figures.stalls else "–",
        f"{figures.without:.1%}",
        f"{1e3 * figures.input_age_s:.0f}" if math.isfinite(figures.input_age_s) else "–",
        f"{figures.mae_all:.3f}",
        f"{figures.rmse_all:.3f}",
        f"{figures.robot_mae_all:.2f}",
    )


def as_rich(lines: Sequence[Line], title: str) -> Table:
    """For a terminal: one line a run, without the joints."""
    table = Table(title=title)
    for number, head in enumerate(_TIMING):
        table.add_column(head, justify="right" if number else "left")
    for line in lines:
        table.add_row(*_timing(line))
    return table


def as_markdown(lines: Sequence[Line], names: Sequence[str]) -> str:
    """Two tables: how evenly the actions came with the errors overall, and the errors by joint."""
    first = [_row(_TIMING), _row(["---"] + ["---:"] * (len(_TIMING) - 1))]
    first += [_row(_timing(line)) for line in lines]
    head = ["method", "delay s", *(_escaped(name) for name in names)]
    second = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for outcome, figures in lines:
        cells = [f"{m:.3f} / {r:.3f}" for m, r in zip(figures.mae, figures.rmse, strict=True)]
        second.append(_row([outcome.method, f"{outcome.delay_s:g}", *cells]))
    by_joint = "MAE / RMSE of the commands by joint, °:"
    return "\n".join([*first, "", by_joint, "", *second, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(name: str) -> str:
    return name.replace("|", "\\|")


def write_table(lines: Sequence[Line], names: Sequence[str], folder: Path) -> None:
    """`table.csv`, one line a run with every figure, and `table.md`."""
    head = ["method", "delay_s", "rate_hz", "longest_gap_s", "stalls", "stall_s"]
    head += ["without_fresh_share", "input_age_s", "mae", "rmse", "robot_mae"]
    head += [f"mae {name}" for name in names] + [f"rmse {name}" for name in names]
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for outcome, f in lines:
            plain = [f.rate_hz, f.longest_gap_s, f.stalls, f.stall_s, f.without, f.input_age_s]
            plain += [f.mae_all, f.rmse_all, f.robot_mae_all, *f.mae.tolist(), *f.rmse.tolist()]
            numbers = [f"{value:.6g}" for value in plain]
            writer.writerow([outcome.method, f"{outcome.delay_s:g}", *numbers])
    (folder / "table.md").write_text(as_markdown(lines, names), encoding="utf-8")
