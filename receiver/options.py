"""What a receiver can be told, on the command line or in a YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np

from common import endpoints
from common.kinematics import MECA500
from common.wire import ALINE_LENGTH
from receiver.latch import LatchedHold

__all__ = ["Limits", "Ports", "ReceiverOptions", "Recording", "StaleAfter"]


def _check_port(option: str, port: int, lowest: int = 1) -> None:
    """ValueError for what is no port: ZeroMQ would take its remainder, and listen there."""
    if not lowest <= port <= 65_535:
        raise ValueError(f"{option} must be from {lowest} to 65535, not {port}")


def _check_above_0(option: str, value: float) -> None:
    """ValueError for anything but a finite number above 0."""
    if not 0 < value < math.inf:  # false for NaN too
        raise ValueError(f"{option} must be a finite number above 0, not {value:g}")


@dataclass(frozen=True)
class Ports:
    """Where the streams come in and the actions go out."""

    camera: int = endpoints.CAMERA.port
    """TCP port that cameras push to."""
    robot: int = endpoints.ROBOT.port
    """TCP port that the robot sender publishes on."""
    sensor: int = endpoints.SENSOR.port
    """UDP port of the force sensor."""
    action: int = endpoints.ACTION.port
    """TCP port that actions are published on."""
    time: int = endpoints.TIME.port
    """TCP port at which senders ask for the time; their clocks are known better by it. 0: none."""

    def __post_init__(self) -> None:
        """ValueError for a number that is no port."""
        for one in fields(self):
            lowest = 0 if one.name == "time" else 1
            _check_port(f"--ports.{one.name}", getattr(self, one.name), lowest)


@dataclass(frozen=True)
class StaleAfter:
    """How long a stream may be silent before the output is put on hold, in seconds."""

    view_s: float = 2.0
    """Any camera view."""
    sensor_s: float = 0.5
    """The force sensor."""
    robot_s: float = 0.5
    """The robot's state."""
    features_s: float = 2.0
    """Age of the oldest image behind the features."""

    def __post_init__(self) -> None:
        """ValueError for a time that nothing would ever be older than."""
        for one in fields(self):
            _check_above_0(f"stale_after: {one.name}", getattr(self, one.name))


@dataclass(frozen=True)
class Limits:
    """What may leave towards the robot. Every command is cut down to this, or becomes a hold."""

    arm: Literal["meca500", "none"] = "meca500"
    """Geometry for the workspace box; none: the box is applied to pose commands only."""
    joint_min_deg: tuple[float, float, float, float, float, float] = field(
        default=MECA500.joint_min_deg  # type: ignore[assignment]
    )
    """Lowest joint angles."""
    joint_max_deg: tuple[float, float, float, float, float, float] = field(
        default=MECA500.joint_max_deg  # type: ignore[assignment]
    )
    """Highest joint angles."""
    joint_speed_deg_s: tuple[float, float, float, float, float, float] = (
        45.0,
        45.0,
        45.0,
        90.0,
        90.0,
        90.0,
    )
    """Largest joint speeds."""
    joint_step_deg: float = 5.0
    """Largest change of a joint from one row to the next."""
    position_speed_mm_s: float = 100.0
    """Largest speed of the tool in pose commands."""
    rotation_speed_deg_s: float = 90.0
    """Largest turning speed of the tool in pose commands."""
    workspace_min_mm: tuple[float, float, float] = (-330.0, -330.0, 0.0)
    """One corner of the box that the tool must stay in."""
    workspace_max_mm: tuple[float, float, float] = (330.0, 330.0, 500.0)
    """The opposite corner."""
    tool_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The tool's tip in the flange's frame (z points out of the flange)."""
    gripper_min: float = 0.0
    """Lowest gripper value."""
    gripper_max: float = 1.0
    """Highest gripper value."""
    force_n: float = 3.0
    """Above this the output is on hold."""

    def __post_init__(self) -> None:
        """ValueError for limits that nothing can satisfy, or that would limit nothing."""
        for one in fields(self):
            if one.name != "arm" and not np.isfinite(getattr(self, one.name)).all():
                raise ValueError(f"limits: {one.name} must be finite numbers")
        pairs = (
            ("joint_min_deg", "joint_max_deg"),
            ("workspace_min_mm", "workspace_max_mm"),
        )
        for low, high in pairs:
            if not all(a < b for a, b in zip(getattr(self, low), getattr(self, high), strict=True)):
                raise ValueError(f"limits: {low} must be below {high}")
        if not self.gripper_min < self.gripper_max:
            raise ValueError("limits: gripper_min must be below gripper_max")
        positive = (*self.joint_speed_deg_s, self.joint_step_deg, self.position_speed_mm_s)
        if not all(v > 0 for v in (*positive, self.rotation_speed_deg_s, self.force_n)):
            raise ValueError("limits: speeds, steps and the force must be above 0")


@dataclass(frozen=True)
class Recording:
    """How sessions are recorded."""

    keep_free_mb: float = 500.0
    """Recording stops when less than this is left on the disk."""

    def __post_init__(self) -> None:
        """ValueError for a limit that makes no sense."""
        if not 0 <= self.keep_free_mb < math.inf:
            raise ValueError("recording: keep_free_mb must be 0 or more")


RIG_VIEWS = {
    "41182735": "View1",
    "49429257": "View2",
    "44377151": "View3",
    "49045152": "View4",
    "OAK": "View5",
}
"""The known rig: four ZED cameras by serial number and an OAK."""


@dataclass(frozen=True)
class ReceiverOptions:
    """Receive the sensor streams, think slowly, act fast: inference on a robot in real time."""

    checkpoint: str
    """A trained policy: a directory of this project's, or a .pt of the existing rigs."""
    vl_reuse: int = 4
    """A vision-language feature serves this many actions before a newer one is due."""
    save_data: bool = False
    """Record the session; `record on` and `record off` typed while running change it."""
    robot_ip: str = "localhost"
    """Where the robot sender publishes."""
    task: str | None = None
    """The instruction; `task TEXT` typed while running changes it. Default: the checkpoint's."""
    action_hz: float = 10.0
    """The fast loop's clock."""
    output_dir: Path = Path()
    """Where session folders are made."""
    duration: float | None = None
    """Stop cleanly after this many seconds of inference. Default: until Ctrl+C."""
    summary: Path | None = None
    """Write the run summary here, as JSON."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "int10", "int8"] = "auto"
    """Number format of the weights; auto: the backbone in bfloat16 on a GPU, all else in float32;
    int10, int8: as auto, with weights of so many bits in the fast half (CPU only, costs about 0.5
    or 2 to 5 % of accuracy)."""
    fusion: Literal["concat", "cross_attention", "gated", "none"] | None = None
    """How features and sensor are joined. Default: the checkpoint's."""
    backbone: str | None = None
    """Hugging Face folder or id of the backbone, for a checkpoint that does not hold it."""
    config: Path | None = None
    """YAML file with any of these options; the command line wins over it."""
    rerun: bool = False
    """Show views, joints, force, A-scans, actions and latencies live in Rerun's viewer."""
    rerun_save: Path | None = None
    """Write what Rerun would show into this .rrd file."""
    rerun_connect: str | None = None
    """Show it in a Rerun viewer that runs, e.g. rerun+http://192.168.0.7:9876/proxy."""
    rerun_serve: int | None = None
    """Let Rerun viewers on this machine connect on this port."""
    plain: bool = False
    """Plain lines even on a terminal."""
    bind: str = "*"
    """Address to listen on; * for every interface."""
    robot_required: bool = True
    """Run without a robot too: as long as none was seen, every action is published as a hold."""
    sensor_hz: float = endpoints.SENSOR.rate_hz
    """Rate of the force sensor, to count lost samples by."""
    aline_length: int = ALINE_LENGTH
    """Values in an A-scan."""
    reuse_unchanged_views: bool = False
    """Views whose picture is the very one before are not encoded again."""
    torch_threads: int = 0
    """Threads of PyTorch on the CPU; 0: half the cores."""
    slow_loop: Literal["auto", "thread", "process"] = "auto"
    """Where the slow half runs; auto: in a process of its own on a CPU, in a thread on a GPU."""
    ports: Ports = field(default_factory=Ports)
    latch: tuple[LatchedHold, ...] = ("emergency_stop", "error")
    """Holds that last until `resume` is typed, though their reason is gone."""
    stale_after: StaleAfter = field(default_factory=StaleAfter)
    limits: Limits = field(default_factory=Limits)
    recording: Recording = field(default_factory=Recording)
    views: dict[str, str] = field(default_factory=lambda: dict(RIG_VIEWS))
    """Camera name or ZED serial number → view."""

    def __post_init__(self) -> None:
        """ValueError for values that make no sense."""
        # tyro fills required fields with a marker while it builds its defaults.
        if isinstance(self.vl_reuse, int) and self.vl_reuse < 1:
            raise ValueError(f"--vl-reuse must be at least 1, not {self.vl_reuse}")
        if not 0 < self.action_hz <= 1000:
            raise ValueError(f"--action-hz must be above 0 and at most 1000, not {self.action_hz}")
        if self.duration is not None:
            _check_above_0("--duration", self.duration)
        if self.rerun_serve is not None:
            _check_port("--rerun-serve", self.rerun_serve)
        if not 1 <= self.aline_length <= 16_000:
            raise ValueError("--aline-length must be 1 to 16000 so that a sample fits a datagram")
        _check_above_0("--sensor-hz", self.sensor_hz)
