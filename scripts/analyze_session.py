"""The timing of a run, from what it left: a table, a picture, JSON.

python scripts/analyze_session.py async_inference_20260101_120000
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("export")

import tyro
from rich.console import Console
from rich.table import Table

from common.session import SessionError
from scripts.analyze_figures import figures_of
from scripts.analyze_inputs import read_run

_SPREAD = ("mean", "p50", "p99", "max")
_WIDTH = 140


@dataclass(frozen=True)
class AnalyzeOptions:
    """Say how a run went. What its input does not hold is left out."""

    path: Annotated[Path, tyro.conf.Positional]
    """A session's folder, an inference_results JSON, or a log of the receiver's plain lines."""
    plot: Path | None = None
    """The picture; beside the input when not given. Needs matplotlib."""
    no_plot: bool = False
    """Draw no picture."""
    json: Path | None = None
    """Write the figures as JSON too."""


def main() -> int:
    """Read, show, draw; the exit code: 0, 2 for what cannot be read, 1 for a failure."""
    options = cli.parse(AnalyzeOptions)
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=_WIDTH)  # a file has room for a row on a line
    try:
        run = read_run(options.path)
    except SessionError as error:
        cli.fail(str(error))
    figures = figures_of(run)
    out.print(_table(figures))
    try:
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if not options.no_plot:
            plot = options.plot or _beside(options.path)
            _draw(run, figures, plot)
            out.print(f"picture  {plot}", markup=False, soft_wrap=True)
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}", 1)
    return 0


def _beside(path: Path) -> Path:
    return path / "analysis.png" if path.is_dir() else path.with_name(f"{path.stem}_analysis.png")


def _draw(run: Any, figures: dict[str, Any], plot: Path) -> None:
    try:
        from scripts import analyze_plot
    except ImportError as error:
        cli.fail(f"the picture needs matplotlib ({error}): pip install matplotlib, or --no-plot")
    analyze_plot.draw(run, figures, plot)


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['source']}: {figures['name']}")
    for name in ("", "count", "Hz", *_SPREAD, ""):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    actions = figures.get("actions", {})
    if updates := figures.get("vl_updates"):
        _add(table, "VL updates, ms", updates, "ms")
    if actions:
        noted = []
        if (left_out := actions.get("ticks_without_action")) is not None:
            noted.append(f"{left_out} ticks without an action")
        if "deadline_misses" in figures:
            noted.append(f"{figures['deadline_misses']} deadlines missed")
        _add(table, "actions, inference ms", actions, "inference_ms", ", ".join(noted))
        _add(table, "  lateness, ms", actions, "lateness_ms", counted=False)
        _add(table, "  feature age, ms", actions, "feature_age_ms", counted=False)
        _add(table, "  sensor window, samples", actions, "window_samples", _window(actions), False)
        if served := actions.get("actions_per_update"):
            said = ", ".join(f"{count}: {times}×" for count, times in served.items())
            wanted = f" ({actions['vl_reuse']} wanted)" if "vl_reuse" in actions else ""
            table.add_row(f"  actions an update served{wanted}", *[""] * 6, said)
    for name, stream in figures.get("streams", {}).items():
        table.add_section()
        noted = [f"{key}: {stream[key]}" for key in ("gaps", "lost") if key in stream]
        title = f"{name}, interval ms" if "interval_ms" in stream else name
        _add(table, title, stream, "interval_ms", ", ".join(noted))
        _add(table, "  capture to arrival, ms", stream, "delay_ms", counted=False)
    for title, key in (("on hold", "holds"), ("cut by a limit", "limits_applied")):
        if key in figures:
            table.add_section()
            said = ", ".join(f"{name}: {n}×" for name, n in figures[key].items()) or "never"
            table.add_row(title, *[""] * 6, said)
    return table


def _window(actions: dict[str, Any]) -> str:
    spread = actions.get("window_samples")
    if not spread:
        return ""
    whole = f", whole: {actions['window_full']}" if "window_full" in actions else ""
    return f"least {spread['min']:.0f}{whole}"


def _add(
    table: Table,
    title: str,
    figures: dict[str, Any],
    key: str,
    noted: str = "",
    counted: bool = True,
) -> None:
    """A row: how many, how often, and the spread under `key` where there is one."""
    spread = figures.get(key)
    if not counted and spread is None:
        return
    count = str(figures["count"]) if counted else ""
    rate = f"{figures['rate_hz']:.2f}" if counted and "rate_hz" in figures else ""
    values = [f"{spread[name]:.2f}" for name in _SPREAD] if spread else [""] * len(_SPREAD)
    table.add_row(title, count, rate, *values, noted)


if __name__ == "__main__":
    sys.exit(main())
