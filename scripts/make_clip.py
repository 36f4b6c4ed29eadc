"""Make a short film of a demo run from the rig's own record.

python scripts/make_clip.py runs/latest --out docs/demo.gif
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
from sim.model import VIEWS, place
from sim.rendering import RigRenderer
from sim.rig import InsertionRig
from sim.task import DISTANCE_MM
from sim.trace import TraceError, read_trace

__all__ = ["main"]

Picture = NDArray[np.uint8]

_JOINTS = tuple(f"j{index}" for index in range(1, 7))
_NEEDED = ("wall_time", *_JOINTS, "distance_mm", "lateral_mm", "depth_mm")
_NEEDED += ("tissue_mm", "episode", "seed")
_BEFORE_S = 0.5
_MOVED_DEG = 0.05


@dataclass(frozen=True)
class Options:
    """Render a run of the demo again, as a GIF."""

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/latest")
    """Folder of the run: its rig.csv is read, and its score.jsonl where there is one."""
    out: Path = Path("demo.gif")
    """The film, a GIF."""
    seconds: float = 20.0
    """How much of it, from the first motion on."""
    fps: float = 10.0
    """Pictures a second."""
    views: tuple[str, ...] = ("View2", "View3")
    """Cameras, side by side: View1 to View5."""
    width: int = 400
    """Pixels across each of them."""

    def __post_init__(self) -> None:
        """ValueError for what no film can be made of."""
        if not (0 < self.fps <= 30 and 0 < self.seconds <= 300 and 64 <= self.width <= 1280):
            raise ValueError("--fps up to 30, --seconds up to 300, --width 64 to 1280")
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not 1 <= len(self.views) <= len(VIEWS):
            named = " ".join(unknown) or f"{len(self.views)} of them"
            raise ValueError(f"--views {named}: name one or more of {', '.join(VIEWS)}")
        if self.out.suffix.lower() != ".gif":
            raise ValueError(f"--out {self.out}: the film is a GIF; name a file that ends in .gif")


@dataclass(frozen=True, slots=True)
class _Moment:
    joints_deg: NDArray[np.float64]
    distance_mm: float
    in_port: bool
    tissue_mm: float
    episode: int
    seed: int


def main() -> int:
    """Make the film; the exit code."""
    options = cli.parse(Options)
    if not options.out.parent.is_dir():
        cli.fail(f"--out {options.out}: there is no folder {options.out.parent}")
    try:
        moments = _moments(options)
        score = read_score(options.run / "score.jsonl")
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}; give the folder of a demo's run")
    except ValueError as error:
        cli.fail(str(error))
    try:
        first, *rest = _film(options, moments, score)
    except DriverError as error:
        cli.fail(str(error))
    try:
        first.save(
            options.out,
            save_all=True,
            append_images=rest,
            duration=round(1000 / options.fps),
            loop=0,
            optimize=True,
        )
        size_mb = options.out.stat().st_size / 1e6
    except OSError as error:
        cli.fail(f"--out {options.out}: cannot be written ({error.strerror or error})", 1)
    print(f"{options.out}: {len(moments)} pictures, {size_mb:.1f} MB")
    return 0


def _moments(options: Options) -> list[_Moment]:
    """The run at the film's rate, from the first motion on; at least one. TraceError, OSError."""
    path = options.run / "rig.csv"
    trace = read_trace(path, _NEEDED)
    joints = np.stack([trace[name] for name in _JOINTS], axis=1)
    moved = np.flatnonzero((np.abs(joints - joints[:1]) > _MOVED_DEG).any(axis=1))
    if not len(moved):
        raise TraceError(f"{path}: the arm never moved in these {len(joints)} rows: no film of it")
    # The wall clock may have been set back during the run; one cannot search in that.
    at = np.maximum.accumulate(trace["wall_time"])
    wanted = at[moved[0]] - _BEFORE_S + np.arange(0.0, options.seconds, 1.0 / options.fps)
    found = np.searchsorted(at, wanted)
    # A tip may be as deep beside the port.
    inside = (trace["depth_mm"] > 0) & (trace["lateral_mm"] < RigConfig().port_radius_mm)
    return [
        _Moment(
            joints[row],
            float(trace["distance_mm"][row]),
            bool(inside[row]),
            float(trace["tissue_mm"][row]),
            int(trace["episode"][row]),
            int(trace["seed"][row]),
        )
        for row in found[found < len(at)]
    ]


def _film(
    options: Options, moments: list[_Moment], score: list[dict[str, Any]]
) -> list[Image.Image]:
    config = RigConfig()
    rig = InsertionRig(config)
    height = round(options.width * 9 / 16)
    pictures: list[Image.Image] = []
    shown = -1
    with RigRenderer(rig.model, options.width, height) as renderer:
        for moment in moments:
            if moment.seed != shown:
                place(rig.model, config, Layout.from_seed(config, moment.seed))
                shown = moment.seed
            rig.data.qpos[:6] = np.radians(moment.joints_deg)
            rig.data.qpos[9] = moment.tissue_mm / 1e3
            # Kinematics, and what the renderer needs of it.
            rig.refresh()
            seen = renderer.render(rig.data, options.views)
            picture = np.hstack([seen[view] for view in options.views])
            pictures.append(_reduced(_captioned(picture, _caption(moment, score))))
    return pictures


def _caption(moment: _Moment, score: list[dict[str, Any]]) -> str:
    text = f"episode {moment.episode + 1}: "
    if moment.in_port:
        text += f"in the port, {moment.distance_mm:.2f} mm to the tissue"
        text += f" (wanted {DISTANCE_MM:.1f})"
    else:
        text += "approaching"
    if score:  # the run was judged
        before = [entry["success"] for entry in score if entry["number"] < moment.episode]
        text += f"   succeeded so far: {sum(before)} of {len(before)}"
    return text


def _captioned(picture: Picture, text: str) -> Picture:
    bar = np.full((28, picture.shape[1], 3), 24, np.uint8)
    cv2.putText(bar, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([picture, bar])


def _reduced(picture: Picture) -> Image.Image:
    image = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    # Pillow's usual way gives colours to large things only: the port's orange ring would be grey.
    return image.quantize(160, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.exit(main())
