"""Lays an exported MCAP file out in Rerun: pictures, A-scans, the arm's pose, all curves.

python scripts/mcap_in_rerun.py session.mcap --out session.rrd && rerun session.rrd

Rerun opens an MCAP file itself and shows its pictures, A-scans and text. Numbers inside protobuf
messages it plots once a curve is told which field to take; that is what is done here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from rich.console import Console

from common import cli

if TYPE_CHECKING:
    import rerun.blueprint as rrb

_TIMELINE = "message_publish_time"
_FLUSH_S = 600.0


@dataclass(frozen=True)
class LayoutOptions:
    """Turn an exported MCAP file into an .rrd file with a layout."""

    path: Annotated[Path, tyro.conf.Positional]
    """A file that scripts/export_session.py wrote."""
    out: Path
    """The .rrd file to write."""
    overwrite: bool = False
    """Replace what is there."""


def main() -> int:
    """Write the .rrd file; the exit code: 0, 2 for what cannot be used, 1 for a failure."""
    options = cli.parse(LayoutOptions)
    try:
        import mcap  # noqa: F401
        import rerun as rr
    except ImportError as error:
        cli.fail(f"packages are missing ({error}): pip install '.[export,rerun]'")
    if options.out.exists() and not options.overwrite:
        cli.fail(f"{options.out}: exists; --overwrite replaces it")
    draft = options.out.with_name(f".{options.out.name}.part")
    try:
        views = _views(options.path)
        recording = rr.RecordingStream("dualrate")
        recording.save(draft, default_blueprint=_layout(views))
        recording.log_file_from_path(options.path)
        recording.log("flange", rr.CoordinateFrame("flange"), rr.TransformAxes3D(0.05), static=True)
        recording.flush(timeout_sec=_FLUSH_S)
        recording.disconnect()
        draft.replace(options.out)
    except (OSError, RuntimeError, ValueError) as error:
        cli.fail(f"{options.path}: {' '.join(str(error).split())}", 1)
    finally:
        draft.unlink(missing_ok=True)
    Console(highlight=False).print(f"{options.out}: rerun {options.out}", markup=False)
    return 0


def _views(path: Path) -> list[str]:
    """The views in an exported file."""
    from mcap.exceptions import McapError
    from mcap.reader import make_reader

    try:
        with path.open("rb") as file:
            summary = make_reader(file).get_summary()
    except OSError as error:
        cli.fail(f"{path}: {error.strerror}")
    except McapError as error:
        cli.fail(f"{path}: no MCAP file ({type(error).__name__}); export a session first")
    topics = [channel.topic for channel in summary.channels.values()] if summary else []
    return sorted(topic for topic in topics if topic.startswith("/views/"))


def _layout(views: list[str]) -> rrb.Blueprint:
    import rerun.blueprint as rrb

    pictures: list[rrb.View | rrb.Container] = [
        rrb.Spatial2DView(origin=view, name=view.rpartition("/")[2]) for view in views
    ]
    pictures.append(rrb.Spatial2DView(origin="/sensor/ascans", name="A-scans of a datagram"))
    pose = rrb.Spatial3DView(
        origin="/",
        contents=["/tf", "/robot/pose", "/flange"],
        name="Flange",
        spatial_information=rrb.SpatialInformation(target_frame="base"),
    )
    right = rrb.Vertical(
        rrb.Horizontal(
            _series("/robot/joints", "Joints, rad", "foxglove.JointStates", ".joints[].position"),
            pose,
        ),
        _series("/actions", "Action, first row", "dualrate.ActionChunk", ".first[]"),
        _series("/sensor/force", "Force, N", "dualrate.Force", ".force_n"),
        rrb.Horizontal(
            _series("/actions", "Inference, ms", "dualrate.ActionChunk", ".inference_ms"),
            _series("/actions", "Lateness, ms", "dualrate.ActionChunk", ".lateness_ms"),
            _series("/actions", "Feature age, ms", "dualrate.ActionChunk", ".feature_age_ms"),
            rrb.TextLogView(origin="/log", name="Log"),
        ),
    )
    return rrb.Blueprint(
        rrb.Horizontal(rrb.Grid(*pictures, grid_columns=2), right),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed", timeline=_TIMELINE),
        auto_views=False,
        auto_layout=False,
    )


def _series(topic: str, name: str, kind: str, field: str) -> rrb.TimeSeriesView:
    """A plot of one field, or of each element of a list, of a topic's messages."""
    import rerun as rr
    import rerun.blueprint as rrb
    from rerun.blueprint.encodings import ComponentSourceKind, VisualizerComponentMapping

    mapping = VisualizerComponentMapping(
        "Scalars:scalars",
        ComponentSourceKind.SourceComponent,
        source_component=f"{kind}:message",
        selector=field,
    )
    visualizer = rr.SeriesLines().visualizer(mappings=[mapping])
    return rrb.TimeSeriesView(origin=topic, name=name, overrides={topic: [visualizer]})


if __name__ == "__main__":
    sys.exit(main())
