"""What the insertion rig is made of and where its port lies: options, home pose, seeded places."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from common.kinematics import MECA500, flange_transform

__all__ = ["HOME_DEG", "NEEDLE_MM", "TIP_FROM_FLANGE_MM", "Layout", "RigConfig", "TissueKind"]
__all__ += ["tip_transform"]

# Elbow and wrist bent, every joint at least 35 degrees from its end and 30 from the singularity of
# a straight wrist; the needle points 45 degrees down, at the port. Turned aside by joint 1, so that
# the flange's Euler angles there (-157, 40, 147) are well away from where they wrap around.
HOME_DEG: tuple[float, ...] = (25.0, 30.0, -15.0, 0.0, 30.0, 0.0)

SENSOR_MM = 15.0  # height of the force sensor on the flange
HUB_MM = 10.0  # from the sensor to where the needle starts
NEEDLE_MM = 45.0
TIP_FROM_FLANGE_MM = SENSOR_MM + HUB_MM + NEEDLE_MM

TissueKind = Literal["regular", "irregular"]
"""How the tissue surface moves (`sim/tissue.py`)."""


@dataclass(frozen=True, slots=True)
class RigConfig:
    """The options of the rig; every process that shows or steps the rig must have the same."""

    # Physics steps a second; the force sensor samples at every second one, at 650 Hz.
    physics_hz: float = 1300.0
    # How much of the arm's rated joint speed is used; near an eye an arm is set slow.
    joint_speed_share: float = 0.25
    # How the tissue surface moves along the port's axis: a swing, or by chance (`sim/tissue.py`).
    tissue: TissueKind = "regular"
    # The swing's reach to either side; 0 keeps the surface still. Irregular, it has the same RMS.
    tissue_amplitude_mm: float = 1.5
    # How often a second it swings; irregular, the middle of its band of frequencies.
    tissue_hz: float = 1.0
    # Mean distance from the port to the tissue surface behind it.
    tissue_depth_mm: float = 8.0
    # Force per indentation; soft enough that a clumsy policy stays below a few newtons.
    tissue_stiffness_n_mm: float = 0.3
    # How firmly the eye sits in its socket.
    eye_stiffness_n_mm: float = 0.2
    # Diameter 24 mm: an adult human eye.
    eye_radius_mm: float = 12.0
    # Inner radius of the port; a lateral error up to this enters.
    port_radius_mm: float = 1.5
    # From the needle's tip at HOME_DEG to the port when nothing is varied.
    home_gap_mm: float = 4.0
    # Scales how much the port's place and direction vary by seed; 0 for always the same place.
    port_spread: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for anything but finite numbers in a range that can be simulated."""
        kinds = get_args(TissueKind)
        if self.tissue not in kinds:
            raise ValueError(f"tissue must be {' or '.join(kinds)}, not {self.tissue!r}")
        for field in fields(self):
            if field.name == "tissue":
                continue
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{field.name} must be a number, not {value!r}")
            low, high = _RANGES[field.name]
            if not low <= value <= high:
                raise ValueError(f"{field.name} must be within {low} to {high}, not {value}")

    def as_dict(self) -> dict[str, float | str]:
        """The options by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Any) -> RigConfig:
        """The options of a map by name; raises ValueError for unknown ones or wrong values."""
        if not isinstance(options, dict):
            raise ValueError("options are not a map")
        known = {field.name for field in fields(cls)}
        if not set(options) <= known:
            raise ValueError("options hold an unknown name")
        return cls(**options)


_RANGES = {
    "physics_hz": (200.0, 5000.0),
    "joint_speed_share": (0.01, 1.0),
    "tissue_amplitude_mm": (0.0, 5.0),
    "tissue_hz": (0.0, 5.0),
    "tissue_depth_mm": (2.0, 15.0),
    "tissue_stiffness_n_mm": (0.02, 5.0),
    "eye_stiffness_n_mm": (0.02, 5.0),
    "eye_radius_mm": (8.0, 20.0),
    "port_radius_mm": (0.6, 3.0),
    "home_gap_mm": (0.0, 30.0),
    "port_spread": (0.0, 2.0),
}


def tip_transform(
    joints_deg: NDArray[np.float64] | tuple[float, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The needle's direction (3,) and its tip's position (3,) in mm for (6,) joint angles."""
    rotation, position = flange_transform(joints_deg, MECA500)
    axis = rotation[:, 2]
    return axis, position + axis * TIP_FROM_FLANGE_MM


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in one episode.

    Attributes:
        eye_mm: (3,) centre of the eye in the world.
        port_mm: (3,) the port's opening, relative to the eye's centre.
        axis: (3,) unit vector into the eye along the port.
        phase_rad: where in its swing the tissue starts.
        seed: what all of this, and the tissue's irregular motion, is drawn from.
    """

    eye_mm: NDArray[np.float64]
    port_mm: NDArray[np.float64]
    axis: NDArray[np.float64]
    phase_rad: float
    seed: int

    @classmethod
    def from_seed(cls, config: RigConfig, seed: int) -> Layout:
        """The layout of an episode; the same for the same options and seed, on any machine."""
        rng = np.random.default_rng(seed)
        spread = config.port_spread
        axis, tip = tip_transform(HOME_DEG)
        # Eye moved by up to 1.5 mm; port by up to 8 degrees (1.7 mm) on it either way, its
        # direction by up to 3 degrees: enough that the place must be seen, near enough that the
        # A-scan sees the tissue from the home pose in every episode.
        eye = tip + axis * (config.home_gap_mm + config.eye_radius_mm)
        eye = eye + spread * rng.uniform(-1.5, 1.5, 3)
        across = np.cross([0.0, 0.0, 1.0], axis)
        across /= np.linalg.norm(across)
        port = -_tilted(axis, across, spread * np.radians(rng.uniform(-8.0, 8.0, 2)))
        inward = _tilted(-port, across, spread * np.radians(rng.uniform(-3.0, 3.0, 2)))
        phase = float(rng.uniform(0.0, 2.0 * math.pi))
        return cls(eye, port * config.eye_radius_mm, inward, phase, seed)


def _tilted(
    axis: NDArray[np.float64], across: NDArray[np.float64], angles_rad: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`axis` tilted by two angles towards `across` and towards the third direction."""
    third = np.cross(axis, across)
    tilted = axis + math.tan(angles_rad[0]) * across + math.tan(angles_rad[1]) * third
    return np.asarray(tilted / np.linalg.norm(tilted))
