"""How the views are laid out in Rerun."""

from __future__ import annotations

from collections.abc import Sequence

import rerun.blueprint as rrb

__all__ = ["COLORS", "JOINT_NAMES", "PLAN_HEIGHT", "PLAN_WIDTH", "TIMELINE", "layout"]

TIMELINE = "time"
JOINT_NAMES = tuple(f"J{n}" for n in range(1, 7))
COLORS = (
    (80, 160, 255),
    (255, 140, 60),
    (90, 200, 120),
    (235, 90, 100),
    (175, 130, 240),
    (240, 200, 80),
    (160, 170, 180),
)
PLAN_WIDTH, PLAN_HEIGHT = 160.0, 90.0
"""Of the picture of a chunk, the legend beside it aside."""
_WINDOW_S = 20.0


def layout(views: Sequence[str]) -> rrb.Blueprint:
    """Pictures and the B-scan left, curves right, text below; the last 20 s of each curve."""
    pictures: list[rrb.View | rrb.Container] = [
        rrb.Spatial2DView(origin=f"views/{view}", name=view) for view in views
    ]
    pictures.append(rrb.Spatial2DView(origin="sensor/ascans", name="A-scans: time →, depth ↓"))
    left = rrb.Vertical(
        rrb.Grid(*pictures, grid_columns=2),
        rrb.Horizontal(
            rrb.TextDocumentView(origin="task", name="Task"),
            rrb.TextLogView(
                origin="log",
                name="Log",
                columns=rrb.TextLogColumns(text_log_columns=["LogLevel", "Body"]),
            ),
            column_shares=[1, 2],
        ),
        row_shares=[4, 1],
    )
    right = rrb.Vertical(
        _curves("robot/joints", "Joints, °"),
        rrb.Horizontal(
            _curves("action/first_row", "Action, first row"),
            rrb.Spatial2DView(
                origin="action/chunk",
                name="Action chunk: change over its rows",
                visual_bounds=rrb.VisualBounds2D(
                    x_range=[-0.05 * PLAN_WIDTH, 1.4 * PLAN_WIDTH],
                    y_range=[-0.6 * PLAN_HEIGHT, 0.6 * PLAN_HEIGHT],
                ),
            ),
        ),
        _curves("sensor/force", "Force, N"),
        rrb.Horizontal(
            _curves("timing", "Fast loop, ms", ["+ $origin/inference_ms", "+ $origin/lateness_ms"]),
            _curves("timing", "Slow loop, ms", ["+ $origin/update_ms", "+ $origin/feature_age_ms"]),
            _curves("age_ms", "Age of the newest input, ms"),
        ),
    )
    return rrb.Blueprint(
        rrb.Horizontal(left, right, column_shares=[5, 6]),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed", timeline=TIMELINE, play_state="following"),
        auto_views=False,
        auto_layout=False,
    )


def _curves(
    origin: str, name: str, contents: str | Sequence[str] = "$origin/**"
) -> rrb.TimeSeriesView:
    window = rrb.VisibleTimeRange(
        TIMELINE,
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-_WINDOW_S),
        end=rrb.TimeRangeBoundary.cursor_relative(seconds=0.0),
    )
    return rrb.TimeSeriesView(
        origin=origin,
        name=name,
        contents=contents,
        time_ranges=window,
        plot_legend=rrb.PlotLegend(corner="LeftTop"),
    )
