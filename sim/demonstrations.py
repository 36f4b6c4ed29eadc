"""Demonstrations by the scripted expert, in simulated time: many in minutes, for training.

A demonstration holds what the senders would have sent, but for the A-scans: of these it holds the
distance to the tissue, from which `sim.ascan` makes them, each time with other speckle.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sim.demonstration_files import Demonstration
from sim.expert import Expert, joints_for_tip
from sim.layout import HOME_DEG, Layout, RigConfig, tip_transform
from sim.rendering import RigRenderer
from sim.rig import InsertionRig
from sim.task import DISTANCE_MM

__all__ = ["Demonstrator"]

Vector = NDArray[np.float64]

_STEPS = 13  # of physics, 1300 Hz, in a control period of 10 ms
_SAMPLE = 2
_JPEG_QUALITY = 75  # as the camera sender
# The tissue's motion varies from one demonstration to the next, as breathing does.
_TISSUE_HZ = (0.7, 1.3)
_TISSUE_MM = (0.8, 2.0)
# Now and then the arm is pushed off its way, for so long and so fast: what comes after teaches how
# to come back. Pauses between two pushes are drawn from an exponential distribution of this mean.
_PUSH_EVERY_S = 0.8
_PUSH_S = (0.08, 0.3)
_PUSH_ASIDE_MM_S, _PUSH_DEPTH_MM_S = 5.0, 12.0


_KINDS = ("home", "look", "look", "inside", "look", "look")


class Demonstrator:
    """Makes demonstrations; to be used and closed by the thread that made it.

    A sixth begin about the home pose, a sixth in the port but not where they should be, so that a
    policy learns to put right what it did wrong, and the rest are only looks: a picture with the
    goal, which costs next to nothing and shows many places of the port.
    """

    def __init__(self, views: Sequence[str], width: int = 640, height: int = 360) -> None:
        """Render `views`, of width x height pixels; DriverError where nothing can be rendered."""
        self._views = tuple(views)
        self._rig = InsertionRig()
        self._renderer = RigRenderer(self._rig.model, width, height)
        self._made = 0

    def make(self, seed: int, kind: str | None = None) -> Demonstration:
        """The demonstration of a seed; `kind` is `home`, `inside` or `look`, by the seed if None.

        Any seed gives the same demonstration each time, on the same machine.
        """
        rng = np.random.default_rng((seed, 0xD3))
        kind = kind or _KINDS[seed % len(_KINDS)]
        config = RigConfig(
            tissue_hz=float(rng.uniform(*_TISSUE_HZ)),
            tissue_amplitude_mm=float(rng.uniform(*_TISSUE_MM)),
        )
        # The motion of the tissue is no part of the compiled model.
        self._rig.config = config
        layout = Layout.from_seed(config, seed)
        self._rig.reset(seed, _start(kind, config, layout, rng))
        expert = Expert(config, layout, self._rig.joints_deg)
        if kind == "look":
            return self._record(seed, expert, 0.0, np.zeros(1), rng)
        span_s, looks = (6.5, 4) if kind == "home" else (4.5, 3)
        times = np.sort(rng.uniform(0.0, span_s, looks))
        times[0] = 0.0
        return self._record(seed, expert, span_s, times, rng)

    def _record(
        self,
        seed: int,
        expert: Expert,
        span_s: float,
        seen_s: Vector,
        rng: np.random.Generator,
    ) -> Demonstration:
        rig, pushes = self._rig, _Pushes(rng)
        times, joints, samples, pushed = [0.0], [rig.joints_deg], [_sample(rig)], [False]
        pictures: dict[str, list[bytes]] = {view: [] for view in self._views}
        wanted = list(seen_s)
        substep, looked = 0, []
        while True:
            if wanted and rig.time_s >= wanted[0] - 1e-9:
                wanted.pop(0)
                looked.append(rig.time_s)
                self._look(pictures)
            if rig.time_s >= span_s - 1e-9:
                break
            push = pushes.at(rig.time_s)
            pushed[-1] = push is not None
            if push is not None:
                expert.push(push * _STEPS * rig.timestep_s, rig.time_s)
            rig.command_joints(expert.step(rig.time_s, _STEPS * rig.timestep_s, push is None))
            left = _STEPS
            while left:
                span = min(_SAMPLE - substep % _SAMPLE, left)
                rig.step(span)
                substep += span
                left -= span
                if substep % _SAMPLE == 0:
                    samples.append(_sample(rig))
            times.append(rig.time_s)
            pushed.append(False)
            joints.append(rig.joints_deg)
        taken = np.array(samples)
        return Demonstration(
            seed=seed,
            goal_deg=expert.goal_deg,
            times_s=np.array(times),
            joints_deg=np.array(joints),
            pushed=np.array(pushed),
            sampled_s=taken[:, 0],
            forces_n=taken[:, 1].astype(np.float32),
            distances_mm=taken[:, 2].astype(np.float32),
            seen_s=np.array(looked),
            pictures=pictures,
        )

    def _look(self, pictures: dict[str, list[bytes]]) -> None:
        for view, picture in self._renderer.render(self._rig.data, self._views).items():
            encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
            pictures[view].append(encoded.tobytes())

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


class _Pushes:
    """When the arm is pushed, and how fast."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._begins = rng.exponential(_PUSH_EVERY_S)
        self._ends = self._begins
        self._speed: Vector | None = None

    def at(self, time_s: float) -> Vector | None:
        """The push's velocity (3,), mm/s: depth first, then aside either way; None without one."""
        if time_s >= self._ends and self._speed is not None:
            self._speed = None
            self._begins = time_s + 0.3 + self._rng.exponential(_PUSH_EVERY_S)
        if self._speed is None and time_s >= self._begins:
            self._ends = time_s + self._rng.uniform(*_PUSH_S)
            most = (_PUSH_DEPTH_MM_S, _PUSH_ASIDE_MM_S, _PUSH_ASIDE_MM_S)
            self._speed = self._rng.uniform(-1.0, 1.0, 3) * most
        return self._speed


def _sample(rig: InsertionRig) -> tuple[float, float, float]:
    reading = rig.read()
    return reading.time_s, reading.force_n, reading.distance_mm


def _start(kind: str, config: RigConfig, layout: Layout, rng: np.random.Generator) -> Vector:
    """Joint angles (6,) in degrees to begin with."""
    home = np.array(HOME_DEG)
    goal = Expert(config, layout, home)
    if kind == "home" or (kind == "look" and rng.random() < 0.6):
        axis, tip = tip_transform(HOME_DEG)
        # Anywhere between home and the port, and around: what an approach goes through.
        share = float(rng.uniform(0.0, 1.0)) if rng.random() < 0.6 else 0.0
        before = goal.port_mm - layout.axis * 2.5
        tip = tip + share * (before - tip) + rng.uniform(-2.0, 2.0, 3)
        axis = axis + share * (goal.needle - axis)
        # Never in the eye: a tip that starts beyond the wall would be thrown out of it.
        inwards = float((tip - goal.port_mm) @ layout.axis)
        tip = tip - max(inwards + 1.5, 0.0) * layout.axis
        spread = 0.03
    else:
        axis = goal.needle
        depth = config.tissue_depth_mm - DISTANCE_MM + float(rng.uniform(-4.5, 3.0))
        surface = config.tissue_depth_mm - config.tissue_amplitude_mm
        depth = min(max(depth, 0.3), surface - 0.3)
        aside = rng.uniform(-0.7, 0.7, 3)
        aside -= (aside @ layout.axis) * layout.axis
        tip = goal.port_mm + depth * layout.axis + aside
        spread = 0.015
    axis = axis + rng.normal(0.0, spread, 3)
    return joints_for_tip(tip, axis / np.linalg.norm(axis), home)
