"""Pictures of the rig, and what is said where none can be rendered."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from sim.engine import mujoco
from sim.model import VIEWS, Layout, RigConfig, build_model, place
from sim.rendering import RigRenderer
from tests.support import ROOT


def scene(seed: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = build_model(RigConfig(), seed)
    data = mujoco.MjData(model)
    data.qpos[:6] = np.radians((25.0, 30.0, -15.0, 0.0, 30.0, 0.0))
    mujoco.mj_kinematics(model, data)
    return model, data


@pytest.mark.usefixtures("rendering")
def test_every_view_shows_the_eye_and_its_port() -> None:
    model, data = scene()
    with RigRenderer(model, 640, 360) as renderer:
        pictures = renderer.render(data)
    assert tuple(pictures) == VIEWS
    for view, picture in pictures.items():
        assert picture.shape == (360, 640, 3) and picture.dtype == np.uint8
        blue, green, red = (picture[..., k].astype(int) for k in range(3))
        # BGR the right way round: the drape is teal (little red), the port orange (little blue).
        assert ((blue > red + 40) & (green > red + 30)).sum() > 100, view
        if view != "View2":  # the whole arm from afar: there the port is a pixel or two
            assert ((red > 150) & (green > 60) & (blue < red - 80)).sum() >= 3, view
    # The right way up: walls above, drape below.
    front = pictures["View1"].astype(int)
    assert front[:80, :120].mean() > front[-80:, 240:400, 2].mean()


@pytest.mark.usefixtures("rendering")
def test_pictures_follow_the_scene_and_are_arrays_of_their_own() -> None:
    model, data = scene()
    with RigRenderer(model, 160, 90) as renderer:
        before = renderer.render(data, ["View5"])["View5"]
        kept = before.copy()
        place(model, RigConfig(), Layout.from_seed(RigConfig(), 8))
        data.qpos[0] += 0.1
        mujoco.mj_kinematics(model, data)
        after = renderer.render(data, ["View5"])["View5"]
        assert not np.array_equal(before, after)
        assert np.array_equal(before, kept)
        with pytest.raises(KeyError):
            renderer.render(data, ["View6"])


@pytest.mark.usefixtures("rendering")
def test_two_renderers_in_one_thread_do_not_disturb_each_other() -> None:
    (model, data), (other_model, other_data) = scene(), scene(3)
    one, two = RigRenderer(model, 160, 90), RigRenderer(other_model, 96, 64)
    first = one.render(data, ["View3"])["View3"]
    assert two.render(other_data, ["View3"])["View3"].shape == (64, 96, 3)
    two.close()
    two.close()
    assert np.array_equal(first, one.render(data, ["View3"])["View3"])
    one.close()


RENDER = """
from sim.model import build_model
from sim.rig import InsertionRig
InsertionRig().step(10)
from senders.drivers import DriverError
from sim.rendering import RigRenderer
try:
    RigRenderer(build_model(), 64, 64)
except DriverError as error:
    print(error)
"""

# The loader's library missing altogether, as PyOpenGL sees it.
NO_LIBRARY = """
import ctypes, ctypes.util
load, find = ctypes.CDLL, ctypes.util.find_library
class CDLL(ctypes.CDLL):
    def __init__(self, name, *rest, **more):
        if name and "EGL" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *rest, **more)
ctypes.CDLL = CDLL
ctypes.cdll._dlltype = CDLL
ctypes.util.find_library = lambda name: None if "EGL" in name else find(name)
"""


@pytest.mark.parametrize(
    ("prelude", "environment"),
    [(NO_LIBRARY, {}), ("", {"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"})],
    ids=["no libEGL", "no driver behind libEGL"],
)
def test_without_gl_the_physics_runs_and_rendering_names_the_packages(
    prelude: str, environment: dict[str, str]
) -> None:
    if sys.platform != "linux":
        pytest.skip("EGL is how Linux renders without a display")
    run = subprocess.run(
        [sys.executable, "-c", prelude + RENDER],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert "apt-get install libegl1 libgl1-mesa-dri" in line
