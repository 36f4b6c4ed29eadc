"""A demo's run as its programs leave it, written by the rig's own recorder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from sim.layout import HOME_DEG
from sim.rig import Reading
from sim.trace import Trace

MOVED_DEG = tuple(np.add(HOME_DEG, [3.0, -3.0, 2.0, 4.0, -3.0, 5.0]))
BEGAN_AT = 1000.0


def write_trace(path: Path, seeds: tuple[int, int] = (11, 12)) -> None:
    """Half a second at home, a second elsewhere, and in the next episode a second at home."""
    trace = Trace(path)
    for row in range(250):
        moved, episode = 50 <= row < 150, int(row >= 150)
        reading = Reading(
            time_s=row / 100,
            distance_mm=2.25,
            lateral_mm=0.1 if moved else 2.0,  # beside the port at home
            depth_mm=1.0,
            force_n=0.01,
            tissue_mm=0.0,
            tip_mm=np.zeros(3),
        )
        joints = np.array(MOVED_DEG if moved else HOME_DEG)
        trace.add(BEGAN_AT + row / 100, joints, reading, episode, seeds[episode])
    trace.close()


def write_score(path: Path) -> None:
    """The first of its episodes was a success; the second was still going on."""
    entry = {"number": 0, "seed": 11, "success": True, "took_s": 1.0, "reason": "", "rms_mm": 0.25}
    path.write_text(json.dumps(entry) + "\n")


def without_seed(path: Path) -> None:
    """Make of a trace one that an older rig wrote."""
    with path.open(newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
