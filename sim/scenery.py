"""What of the rig is only there to be seen: materials, room and cameras, as parts of its MJCF."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.layout import HOME_DEG

__all__ = ["MATERIALS", "VIEWS", "cameras", "look", "numbers", "room"]

VIEWS = ("View1", "View2", "View3", "View4", "View5")

MATERIALS = """
    <material name="wall" rgba="0.58 0.63 0.69 1" emission="0.45" specular="0" shininess="0"/>
    <material name="table" rgba="0.42 0.45 0.49 1" specular="0.1" shininess="0.1"/>
    <material name="shell" rgba="0.86 0.87 0.88 1" specular="0.5" shininess="0.6"/>
    <material name="joint" rgba="0.17 0.18 0.20 1" specular="0.4" shininess="0.5"/>
    <material name="metal" rgba="0.62 0.64 0.67 1" specular="0.9" shininess="0.8"/>
    <material name="steel" rgba="0.80 0.82 0.85 1" specular="1" shininess="0.9"/>
    <material name="accent" rgba="0.10 0.45 0.85 1" specular="0.5" shininess="0.6"/>
    <material name="drape" rgba="0.16 0.52 0.55 1" specular="0.1" shininess="0.2"/>
    <material name="stand" rgba="0.80 0.81 0.83 1" specular="0.3" shininess="0.4"/>
    <material name="sclera" rgba="0.97 0.95 0.93 0.62" specular="0.8" shininess="0.9"/>
    <material name="limbus" rgba="0.16 0.22 0.27 1" specular="0.4" shininess="0.6"/>
    <material name="iris" rgba="0.25 0.47 0.62 1" specular="0.4" shininess="0.7"/>
    <material name="collarette" rgba="0.52 0.60 0.52 1" specular="0.4" shininess="0.7"/>
    <material name="pupil" rgba="0.02 0.02 0.03 1" specular="0.9" shininess="0.95"/>
    <material name="port" rgba="1.00 0.55 0.05 1" specular="0.4" shininess="0.6"/>
    <material name="tissue" rgba="0.85 0.28 0.20 1" specular="0.3" shininess="0.4"/>"""


def numbers(*values: float) -> str:
    """Numbers as an MJCF attribute."""
    return " ".join(f"{value:.9g}" for value in values)


def look(eye: ArrayLike, target: ArrayLike, up: ArrayLike = (0.0, 0.0, 1.0)) -> str:
    """The xyaxes of a camera at `eye` that looks at `target` with `up` upwards."""
    back = np.asarray(eye, dtype=float) - np.asarray(target, dtype=float)
    right = np.cross(np.asarray(up, dtype=float), back)
    right /= np.linalg.norm(right)
    upwards = np.cross(back, right)
    upwards /= np.linalg.norm(upwards)
    return numbers(*right, *upwards)


def cameras(eye: NDArray[np.float64]) -> str:
    """Four cameras around the eye's usual place (metres)."""
    places = (
        ("View1", (0.24, 0.03, 0.13), (-0.060, 0.0, 0.018), 34.0),
        ("View2", (-0.07, 0.40, 0.13), (-0.085, 0.0, 0.035), 40.0),
        # Close-ups, as through a surgical microscope: the port's place is to be read off them.
        ("View3", (0.075, -0.125, 0.080), (-0.008, 0.0, 0.010), 11.0),
        ("View4", (0.03, 0.055, 0.190), (-0.008, 0.0, 0.006), 10.0),
    )
    # Given for an arm that reaches along x; turned with it.
    angle = math.radians(HOME_DEG[0])
    turn = np.array(
        [
            [math.cos(angle), -math.sin(angle), 0.0],
            [math.sin(angle), math.cos(angle), 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    lines = []
    for name, at, towards, fov in places:
        position, target = eye + turn @ at, eye + turn @ towards
        lines.append(
            f'<camera name="{name}" pos="{numbers(*position)}" fovy="{fov}" '
            f'xyaxes="{look(position, target)}"/>'
        )
    return "\n    ".join(lines)


def room() -> str:
    """Plain walls and a floor; a sky, or any texture, costs half as much again per picture."""
    size, thick = 2.5, 0.01
    wall = '<geom class="show" type="box" material="wall" size='
    flat, low, high = (
        numbers(size, size, thick),
        numbers(size, thick, size),
        numbers(thick, size, size),
    )
    # A darker shade: the floor catches most of the light.
    sides = [f'{wall}"{flat}" pos="0 0 -0.9" rgba="0.33 0.36 0.40 1"/>']
    sides += [f'{wall}"{low}" pos="0 {side} 0"/>' for side in (-size, size)]
    sides += [f'{wall}"{high}" pos="{side} 0 0"/>' for side in (-size, size)]
    return "\n    ".join(sides)
