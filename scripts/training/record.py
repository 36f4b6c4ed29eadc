"""What a training run says of itself: a progress bar, a line a report in a file, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Record", "draw", "read_record"]


class Record:
    """Reports of one stage: shown, and kept in `metrics.jsonl`."""

    def __init__(self, folder: Path, stage: str, steps: int) -> None:
        """Begin a stage; reports of an earlier run in the same folder stay."""
        self._path, self._stage = folder / "metrics.jsonl", stage
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._progress = Progress(*columns)
        self._bar = self._progress.add_task(stage, total=steps, said="")

    def __enter__(self) -> Record:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self._progress.stop()

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Take a report."""
        entry = {"stage": self._stage, "step": step}
        entry |= {name: round(value, 5) for name, value in figures.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self._progress.update(self._bar, completed=step, said=said)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{self._stage} {step}: {said}", highlight=False)


def read_record(folder: Path) -> list[dict[str, Any]]:
    """All reports, those of a step that was done again only the last time."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        newest[entry["stage"], entry["step"]] = entry
    return sorted(newest.values(), key=lambda entry: (entry["stage"], entry["step"]))


_CURVES = {
    "feel": (("first_mm", "first row, median"), ("first_mm_p95", "first row, 95 %")),
    "look": (("tip_mm", "median"), ("tip_mm_p95", "95 %")),
    "act": (("first_mm", "first row, median"), ("first_mm_p95", "first row, 95 %")),
}
_TITLES = {
    "feel": "Fast half, told the goal: the next row, episodes not trained on",
    "look": "Slow half: where the port is, episodes not trained on",
    "act": "Fast half: the next row, episodes not trained on",
}


def draw(folder: Path, path: Path) -> None:
    """Draw the curves of both stages into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = read_record(folder)
    stages = [stage for stage in _CURVES if any(e["stage"] == stage for e in entries)]
    figure, axes = plt.subplots(
        1, max(len(stages), 1), figsize=(6 * max(len(stages), 1), 4), squeeze=False
    )
    for axis, stage in zip(axes[0], stages, strict=False):
        own = [entry for entry in entries if entry["stage"] == stage]
        steps = [entry["step"] for entry in own]
        axis.plot(steps, [entry["loss"] for entry in own], color="0.6", label="training loss")
        for name, label in _CURVES[stage]:
            axis.plot(steps, [entry[name] for entry in own], label=label)
        axis.set(title=_TITLES[stage], xlabel="step", ylabel="error at the tip [mm]", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
