"""The lines the receiver prints, in the form that existing log readers expect."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from common.wire import ActionSpace
from receiver.latch import LatchedHold
from receiver.options import Limits, StaleAfter

__all__ = ["action", "guarding", "hold", "status", "vl_update", "waiting"]


def vl_update(number: int, duration_s: float) -> str:
    """A slow pass ended."""
    return f"[VL Update #{number}] Completed in {duration_s * 1e3:.0f}ms"


def action(
    number: int,
    use: int,
    reuse: int,
    first_row: Sequence[float],
    duration_s: float,
    samples: int,
    window: int,
) -> str:
    """An action was published. `use` above `reuse` says that the next features are late."""
    values = ", ".join(f"{value:.3f}" for value in first_row[:3])
    return (
        f"[ACTION #{number}] VL_reuse={use}/{reuse} | Actions[0]: [{values}, ...]"
        f" | Time: {duration_s * 1e3:.1f}ms | Sensor: {samples}/{window}"
    )


def hold(reason: str) -> str:
    """The output went on hold."""
    return f"[HOLD] {reason}"


def waiting(
    features: bool, images: int, views: int, samples: int, window: int, robot: bool | None
) -> str:
    """Something that inference needs is not there yet; `robot` None when it is not required."""
    line = (
        f"[WAIT] VL Features: {features} | Images: {images == views} ({images}/{views})"
        f" | Sensor: {2 * samples >= window} ({samples}/{window})"
    )
    return line if robot is None else f"{line} | Robot: {robot}"


def guarding(
    space: ActionSpace, limits: Limits, stale: StaleAfter, latched: Sequence[LatchedHold]
) -> list[str]:
    """The banner's lines about what commands in `space` are cut down to, and what is a hold."""
    corners = zip("xyz", limits.workspace_min_mm, limits.workspace_max_mm, strict=True)
    box = ", ".join(f"{axis} {low:g} to {high:g}" for axis, low, high in corners)
    if space == "pose_delta":
        motion = [
            f"Box of the reported pose: {box} mm",
            f"Speed limits: {limits.position_speed_mm_s:g} mm/s along each axis, "
            f"{limits.rotation_speed_deg_s:g} °/s of each angle",
        ]
    else:
        tool = ", ".join(f"{value:g}" for value in limits.tool_mm)
        ranges = zip(limits.joint_min_deg, limits.joint_max_deg, strict=True)
        speeds = ", ".join(f"{value:g}" for value in limits.joint_speed_deg_s)
        motion = [
            f"Box of the tool: {box} mm; the tool: {tool} mm from the flange"
            if limits.arm == "meca500"
            else "Box of the tool: none (limits.arm)",
            f"Joint ranges: {', '.join(f'{low:g} to {high:g}' for low, high in ranges)} °",
            f"Speed limits: joints {speeds} °/s, {limits.joint_step_deg:g} ° a row",
        ]
    return [
        *motion,
        f"Force limit: {limits.force_n:g} N",
        f"Stale after: view {stale.view_s:g} s, sensor {stale.sensor_s:g} s, "
        f"robot {stale.robot_s:g} s, features {stale.features_s:g} s",
        f"Latched holds: {', '.join(latched) or 'none'}",
    ]


def recording(on: bool, written_bytes: int, dropped: int, failure: str) -> str:
    """The status block's line about the recording."""
    state = "on" if on else f"stopped: {failure}" if failure else "off"
    return f"Recording: {state} | {written_bytes / 2**20:.1f} MB | dropped: {dropped}"


def status(
    *,
    updates: int,
    vl_mean_s: float,
    actions: int,
    action_mean_s: float,
    frames: Mapping[str, int],
    samples: int,
    window: int,
    joints: Sequence[float] | None,
    pose: Sequence[float] | None,
) -> list[str]:
    """The lines of the status block."""
    images = ", ".join(f"{view}:{count}" for view, count in frames.items())
    robot = (
        f"Robot: J1={joints[0]:.2f}°, Px={pose[0]:.2f}mm"
        if joints is not None and pose is not None
        else "Robot: none"
    )
    return [
        f"--- Status ({time.strftime('%H:%M:%S')}) ---",
        f"VL Updates: {updates} | VL avg: {vl_mean_s * 1e3:.0f}ms",
        f"Actions: {actions} | Action avg: {action_mean_s * 1e3:.1f}ms",
        f"Images recv: {images}",
        f"Sensor buffer: {samples}/{window}",
        robot,
    ]
