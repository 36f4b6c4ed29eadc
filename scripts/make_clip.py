"""Make a short film of a demo run from the rig's own record.

python scripts/make_clip.py runs/latest --out docs/demo.gif
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from common import cli
from scripts.scoreboard import read_score
from senders.drivers import DriverError
from sim.layout import Layout, RigConfig
from sim.model import place
from sim.rendering import RigRenderer
from sim.rig import InsertionRig
from sim.task import DISTANCE_MM

__all__ = ["main"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """Render a run of the demo again, as a GIF."""

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/latest")
    """Folder of the run: its rig.csv and score.jsonl are read."""
    out: Path = Path("demo.gif")
    """The film."""
    seconds: float = 20.0
    """How much of it, from the first motion on."""
    fps: float = 10.0
    """Pictures a second."""
    views: tuple[str, ...] = ("View2", "View3")
    """Cameras, side by side."""
    width: int = 400
    """Pixels across each of them."""

    def __post_init__(self) -> None:
        """ValueError for numbers that make no sense."""
        if not (0 < self.fps <= 30 and 0 < self.seconds <= 300 and 64 <= self.width <= 1280):
            raise ValueError("--fps up to 30, --seconds up to 300, --width 64 to 1280")


@dataclass(frozen=True)
class _Moment:
    at: float
    joints: tuple[float, ...]
    distance_mm: float
    depth_mm: float
    tissue_mm: float
    episode: int


def main() -> int:
    """Make the film; the exit code."""
    options = cli.parse(Options)
    try:
        moments = _moments(options)
        seeds = {entry["number"]: entry for entry in read_score(options.run / "score.jsonl")}
        pictures = _film(options, moments, seeds)
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}; give the folder of a demo's run")
    except (KeyError, ValueError, DriverError) as error:
        cli.fail(f"{options.run}: {error}")
    first, *rest = [_reduced(picture) for picture in pictures]
    first.save(
        options.out,
        save_all=True,
        append_images=rest,
        duration=round(1000 / options.fps),
        loop=0,
        optimize=True,
    )
    print(f"{options.out}: {len(pictures)} pictures, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _moments(options: Options) -> list[_Moment]:
    """The run at the film's rate, from the first motion on."""
    with (options.run / "rig.csv").open(newline="") as file:
        rows = [
            _Moment(
                float(row["wall_time"]),
                tuple(float(row[f"j{i}"]) for i in range(1, 7)),
                float(row["distance_mm"]),
                float(row["depth_mm"]),
                float(row["tissue_mm"]),
                int(row["episode"]),
            )
            for row in csv.DictReader(file)
        ]
    moving = next((i for i, row in enumerate(rows) if _moved(row, rows[0])), None)
    if moving is None:
        raise ValueError("the arm never moved")
    start = rows[moving].at - 0.5
    wanted = start + np.arange(0.0, options.seconds, 1.0 / options.fps)
    found = np.searchsorted([row.at for row in rows], wanted)
    return [rows[i] for i in found if i < len(rows)]


def _moved(row: _Moment, first: _Moment) -> bool:
    return max(abs(a - b) for a, b in zip(row.joints, first.joints, strict=True)) > 0.05


def _film(
    options: Options, moments: list[_Moment], score: dict[int, dict[str, object]]
) -> list[Picture]:
    config = RigConfig()
    rig = InsertionRig(config)
    height = round(options.width * 9 / 16)
    pictures: list[Picture] = []
    succeeded, shown = 0, -1
    with RigRenderer(rig.model, options.width, height) as renderer:
        for moment in moments:
            if moment.episode not in score and moment.episode > max(score, default=-1) + 1:
                break
            if moment.episode != shown:
                succeeded = sum(bool(score[n]["success"]) for n in score if n < moment.episode)
                shown = moment.episode
                first = min(score, default=0)
                seed = int(str(score[first]["seed"])) if score else 0
                place(rig.model, config, Layout.from_seed(config, seed + shown - first))
            rig.data.qpos[:6] = np.radians(moment.joints)
            rig.data.qpos[9] = moment.tissue_mm / 1e3
            # Kinematics, and what the renderer needs of it.
            rig.refresh()
            seen = renderer.render(rig.data, options.views)
            picture = np.hstack([seen[view] for view in options.views])
            pictures.append(_captioned(picture, moment, succeeded))
    return pictures


def _captioned(picture: Picture, moment: _Moment, succeeded: int) -> Picture:
    bar = np.full((28, picture.shape[1], 3), 24, np.uint8)
    state = "in the port" if moment.depth_mm > 0 else "approaching"
    text = f"episode {moment.episode + 1}: {state}"
    if moment.depth_mm > 0:
        text += f", {moment.distance_mm:.2f} mm to the tissue (wanted {DISTANCE_MM:.1f})"
    text += f"   succeeded so far: {succeeded} of {moment.episode}"
    cv2.putText(bar, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([picture, bar])


def _reduced(picture: Picture) -> Image.Image:
    image = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return image.quantize(96, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.exit(main())
