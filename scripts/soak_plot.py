"""A picture of a soak: when each robot moved, what went wrong meanwhile, memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scripts.command_log import CommandLog
from scripts.soak_faults import Happened
from scripts.soak_samples import Sample

__all__ = ["draw"]

_BINS_S = 0.5


def draw(
    logs: Mapping[str, CommandLog],
    samples: Mapping[str, Sequence[Sample]],
    happened: Sequence[Happened],
    began_at: float,
    path: Path,
) -> None:
    """Write a PNG; minutes since `began_at` (monotonic seconds) along the bottom."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(18, 12), dpi=100, sharex=True, height_ratios=(3, 2, 3)
    )
    for row, (name, log) in enumerate(logs.items()):
        if not len(log.at):
            continue
        edges = np.arange(began_at, log.at[-1] + _BINS_S, _BINS_S)
        counts, _ = np.histogram(log.moves_at, edges)
        share = counts / max(float(np.max(counts)), 1.0)
        minutes = (edges[:-1] - began_at) / 60
        top.fill_between(minutes, row, row + 0.85 * share, step="post", color="tab:green", lw=0)
        top.text(-0.005, row + 0.3, name, transform=top.get_yaxis_transform(), ha="right")
    top.set_yticks([])
    top.set_title("commands to move, a row a robot (full height: every control tick)", fontsize=14)
    kinds = list(dict.fromkeys(one.fault.kind for one in happened))
    for one in happened:
        row = kinds.index(one.fault.kind)
        width = max((one.healed_at - one.began_at) / 60, 0.01)
        middle.barh(row, width, left=(one.began_at - began_at) / 60, color="tab:red", height=0.7)
        top.axvspan(
            (one.began_at - began_at) / 60, (one.healed_at - began_at) / 60, color="tab:red",
            alpha=0.12, lw=0,
        )  # fmt: skip
    middle.set_yticks(range(len(kinds)), kinds)
    middle.set_title("faults", fontsize=14)
    for name, all_of_it in samples.items():
        at = [(sample.at - began_at) / 60 for sample in all_of_it]
        bottom.plot(at, [sample.rss_mb for sample in all_of_it], label=name, lw=1.5)
    bottom.set_ylim(bottom=0)
    bottom.set_title("memory, MB", fontsize=14)
    bottom.legend(fontsize=11, ncols=5, loc="lower right")
    bottom.set_xlabel("minutes", fontsize=13)
    bottom.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
