"""Demonstrations by the scripted expert, in simulated time: many in minutes, for training.

A demonstration holds what the senders would have sent, but for the A-scans: of these it holds the
distance to the tissue, from which `sim.ascan` makes them, each time with other speckle.
"""

from __future__ import annotations

import math
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
_PERIODS = 10  # of these in a tick
_ROWS, _ROW_S = 16, 0.1
_SAMPLE = 2
_JPEG_QUALITY = 75  # as the camera sender
# The tissue's motion varies from one demonstration to the next, as breathing does.
_TISSUE_HZ = (0.7, 1.3)
_TISSUE_MM = (0.8, 2.0)
# How well the arm does what the expert says: a share of each step, and errors (standard deviation
# along, aside, of the needle's direction and of joint 6) that keep so much from tick to tick.
_SHARE = (0.5, 1.1)
_ERRORS_MM, _ERROR_RAD, _ERROR_TURN_DEG = (0.5, 0.3), 0.01, 1.0
_KEPT = (0.5, 0.9)
# In half of the episodes it turns the needle far more lazily than it moves the tip: else hardly any
# moment would show a needle that is off its direction, and a policy would never learn to mend that.
_LAZY, _LAZY_SHARE = 0.5, (0.1, 1.0)
_WELL = 0.2  # of the episodes are without
_TURNED_DEG = 6.0  # at most, to begin with: the needle about itself
# Errors end short of the tissue, and of the wall.
_CLEARANCE_MM, _WALL_DEPTH_MM, _ASIDE_MM = 0.3, -1.5, 1.3


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
        span_s, looks = (8.0, 4) if kind == "home" else (4.5, 3)
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
        rig, arm = self._rig, _Clumsy(self._rig, expert, rng)
        times, joints, samples = [0.0], [rig.joints_deg], [_sample(rig)]
        ticks: list[float] = []
        rows: list[Vector] = []
        pictures: dict[str, list[bytes]] = {view: [] for view in self._views}
        wanted = list(seen_s)
        substep, period, looked = 0, 0, []
        while True:
            if wanted and rig.time_s >= wanted[0] - 1e-9:
                wanted.pop(0)
                looked.append(rig.time_s)
                self._look(pictures)
            if rig.time_s >= span_s - 1e-9:
                break
            if period % _PERIODS == 0:
                asked = Expert(rig.config, rig.layout, rig.joints_deg)
                ticks.append(rig.time_s)
                rows.append(asked.rows(rig.time_s, _ROWS, _ROW_S))
                arm.tick(rows[-1][0])
            period += 1
            rig.command_joints(arm.at((period % _PERIODS or _PERIODS) / _PERIODS))
            left = _STEPS
            while left:
                span = min(_SAMPLE - substep % _SAMPLE, left)
                rig.step(span)
                substep += span
                left -= span
                if substep % _SAMPLE == 0:
                    samples.append(_sample(rig))
            times.append(rig.time_s)
            joints.append(rig.joints_deg)
        taken = np.array(samples)
        return Demonstration(
            seed=seed,
            goal_deg=expert.goal_deg,
            times_s=np.array(times),
            joints_deg=np.array(joints),
            ticks_s=np.array(ticks),
            rows_deg=np.array(rows, np.float32).reshape(-1, _ROWS, 6),
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


class _Clumsy:
    """An arm that does what the expert says, but badly, as one does that is still learning.

    What the expert says is recorded wherever the arm is: so a policy learns what to do where its
    own errors take it (Laskey et al. 2017, arXiv 1703.09327).
    """

    def __init__(self, rig: InsertionRig, expert: Expert, rng: np.random.Generator) -> None:
        self._rig, self._expert, self._rng = rig, expert, rng
        self._share = float(rng.uniform(*_SHARE))
        self._kept = float(rng.uniform(*_KEPT))
        self._size = 0.0 if rng.random() < _WELL else float(rng.uniform(0.3, 1.5))
        if not self._size:
            self._share = 1.0
        # Errors grow less as well: what is put right slowly would add up to any angle.
        self._diligence = float(rng.uniform(*_LAZY_SHARE)) if rng.random() < _LAZY else 1.0
        self._error = self._drawn()
        self._from = self._to = rig.joints_deg

    def tick(self, target_deg: Vector) -> None:
        """Begin to go where the expert says (6,), more or less."""
        kept = self._kept
        self._error = kept * self._error + math.sqrt(1.0 - kept * kept) * self._drawn()
        rig, axis = self._rig, self._rig.layout.axis
        at, told = tip_transform(rig.joints_deg), tip_transform(target_deg)
        side = np.cross(axis, [0.0, 0.0, 1.0])
        side /= np.linalg.norm(side)
        other = np.cross(axis, side)
        along, one, two = self._error[:3]
        slant, lean, turn = self._diligence * self._error[3:]
        tip = at[1] + self._share * (told[1] - at[1]) + along * axis + one * side + two * other
        share = self._diligence * self._share
        needle = at[0] + share * (told[0] - at[0]) + slant * side + lean * other
        self._from = self._to
        try:
            self._to = joints_for_tip(
                self._clear(tip), needle / np.linalg.norm(needle), np.asarray(target_deg)
            )
        except ValueError:  # an error that took it out of the arm's reach
            self._to = np.array(target_deg)
        before = rig.joints_deg[5]
        self._to[5] = before + share * (target_deg[5] - before) + turn

    def at(self, part: float) -> Vector:
        """Where it goes (6,) when that part of the tick is over."""
        return self._from + part * (self._to - self._from)

    def _drawn(self) -> Vector:
        along, aside = _ERRORS_MM
        sizes = np.array([along, aside, aside, _ERROR_RAD, _ERROR_RAD, _ERROR_TURN_DEG])
        return self._size * sizes * self._rng.normal(size=6)

    def _clear(self, tip: Vector) -> Vector:
        """The tip (3,) out of the tissue, and of the wall."""
        rig, axis = self._rig, self._rig.layout.axis
        port = self._expert.port_mm
        depth = float((tip - port) @ axis)
        aside = (tip - port) - depth * axis
        off_mm = float(np.linalg.norm(aside))
        moments = (rig.time_s, rig.time_s + _ROW_S / 2, rig.time_s + _ROW_S)
        depth = min(depth, min(map(self._expert.surface_mm, moments)) - _CLEARANCE_MM)
        if depth > _WALL_DEPTH_MM and off_mm > _ASIDE_MM:
            before = float((tip_transform(rig.joints_deg)[1] - port) @ axis)
            if before <= _WALL_DEPTH_MM:
                depth = _WALL_DEPTH_MM
            else:
                aside = aside * (_ASIDE_MM / off_mm)
        return port + depth * axis + aside


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
        spread = 0.05
    else:
        axis = goal.needle
        depth = config.tissue_depth_mm - DISTANCE_MM + float(rng.uniform(-4.5, 3.0))
        surface = config.tissue_depth_mm - config.tissue_amplitude_mm
        depth = min(max(depth, 0.3), surface - 0.3)
        aside = rng.uniform(-0.7, 0.7, 3)
        aside -= (aside @ layout.axis) * layout.axis
        tip = goal.port_mm + depth * layout.axis + aside
        spread = 0.03
    axis = axis + rng.normal(0.0, spread, 3)
    joints = joints_for_tip(tip, axis / np.linalg.norm(axis), home)
    joints[5] += rng.uniform(-_TURNED_DEG, _TURNED_DEG)
    return joints
