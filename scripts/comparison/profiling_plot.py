"""A picture of a profile: inference time by chunk, and what each buffer makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.comparison.profiling import Profile

__all__ = ["draw"]

_WIDTH = 0.8


def draw(profiles: Sequence[Profile], fps: float, path: Path) -> None:
    """Write a PNG: groups of bars, a group a chunk size, a bar a buffer size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    chunks = list(dict.fromkeys(profile.chunk for profile in profiles))
    buffers = sorted({profile.buffer for profile in profiles})
    figure, panels = plt.subplots(1, 3, figsize=(18, 6.5), dpi=100)
    colors = plt.get_cmap("viridis")
    for axes, title in zip(
        panels,
        (
            "inference, ms: p50, whisker to p95",
            "control ticks with an empty queue, %",
            "actions a second",
        ),
        strict=True,
    ):
        axes.set_title(title, fontsize=14)
        axes.set_xticks(range(len(chunks)), [str(chunk) for chunk in chunks])
        axes.set_xlabel("chunk size, actions", fontsize=12)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    for number, buffer in enumerate(buffers):
        shown = [profile for profile in profiles if profile.buffer == buffer]
        width = _WIDTH / len(buffers)
        at = [chunks.index(p.chunk) - _WIDTH / 2 + (number + 0.5) * width for p in shown]
        look = {
            "width": 0.92 * width,
            "color": colors(0.1 + 0.75 * number / max(len(buffers) - 1, 1)),
            "label": f"buffer {buffer}: lasts {1e3 * buffer / fps:.0f} ms",
        }
        medians = [profile.inference_ms(50) for profile in shown]
        above = [p.inference_ms(95) - m for p, m in zip(shown, medians, strict=True)]
        panels[0].bar(at, medians, yerr=([0.0] * len(at), above), capsize=3, **look)
        empty = panels[1].bar(at, [100 * profile.empty for profile in shown], **look)
        panels[1].bar_label(empty, fmt="%.0f", fontsize=9)
        panels[2].bar(at, [profile.rate_hz for profile in shown], **look)
    panels[1].set_ylim(0, max(1.1 * panels[1].get_ylim()[1], 1.0))
    panels[2].axhline(fps, color="black", linestyle="--", linewidth=1, label="wanted")
    # Small chunks starve most: on the right of the middle panel there is room.
    panels[1].legend(fontsize=10, loc="upper right")
    figure.suptitle(
        "Buffer: actions still queued when the next prediction is asked for "
        "(one above the chunk cannot be)",
        fontsize=14,
    )
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
