"""A picture of a sweep: how often the queue was empty, and how rough the motion was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.chunking_model import Conditions, Outcome

__all__ = ["draw"]

_WIDTH = 0.8


def draw(
    outcomes: Sequence[Outcome], given: Conditions, best: Outcome | None, path: Path, how: str
) -> None:
    """Write a PNG: a group of bars a chunk length, a bar a threshold, the recommended one framed.

    `how` says where the figures come from.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted({outcome.setting.actions_per_chunk for outcome in outcomes})
    thresholds = sorted({outcome.setting.chunk_size_threshold for outcome in outcomes})
    figure, panels = plt.subplots(1, 3, figsize=(18, 7), dpi=100)
    figures: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
        ("ticks without an action, %", lambda o: 100 * o.empty),
        ("RMS jerk of commands, units/s³", lambda o: o.jerk),
        ("reaction to what happens, ms", lambda o: o.reaction_ms),
    )
    colors = plt.get_cmap("viridis")
    for axes, (label, figure_of) in zip(panels, figures, strict=True):
        for index, threshold in enumerate(thresholds):
            shown = [o for o in outcomes if o.setting.chunk_size_threshold == threshold]
            width = _WIDTH / len(thresholds)
            at = [rows.index(o.setting.actions_per_chunk) + (index + 0.5) * width for o in shown]
            edges = ["tab:red" if o is best else "none" for o in shown]
            axes.bar(
                [x - _WIDTH / 2 for x in at],
                [figure_of(o) for o in shown],
                width=0.92 * width,
                color=colors(0.15 + 0.7 * index / max(len(thresholds) - 1, 1)),
                edgecolor=edges,
                linewidth=3,
                label=f"threshold {threshold:g}",
            )
        axes.set_xticks(range(len(rows)), [str(count) for count in rows])
        axes.set_xlabel("actions per chunk", fontsize=14)
        axes.set_title(label, fontsize=15)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    if max((outcome.empty for outcome in outcomes), default=0.0) == 0.0:
        panels[0].set_ylim(0, 1)
        panels[0].text(0.5, 0.5, "never", transform=panels[0].transAxes, ha="center", fontsize=20)
    panels[0].legend(fontsize=12)
    figure.suptitle(
        f"{given.fps:g} Hz, inference {1e3 * given.inference_s:g} ms, network "
        f"{1e3 * given.delay_s:g} ± {1e3 * given.jitter_s:g} ms one way, loss {given.loss:.2%} "
        f"({how}); framed: the recommendation",
        fontsize=15,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
