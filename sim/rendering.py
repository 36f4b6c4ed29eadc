"""Pictures of the rig from its cameras, rendered without a display through EGL."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from senders.drivers import DriverError
from sim.engine import mujoco
from sim.model import VIEWS

__all__ = ["GL_PACKAGES", "RigRenderer"]

# Debian and Ubuntu: the EGL loader, Mesa's software and hardware drivers, and desktop OpenGL's
# entry points (libegl1 brings Mesa's EGL but neither of the others).
GL_PACKAGES = "libegl1 libgl1-mesa-dri libopengl0"


class RigRenderer:
    """Renders one model's views; to be made, used and closed by one and the same thread.

    MuJoCo releases Python's lock while it draws, so other threads run on meanwhile.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        """Make a GL context for pictures of `width` × `height` pixels.

        Raises DriverError, with the packages to install, where there is no usable EGL.
        """
        self.width, self.height = width, height
        self._gl: Any = None
        self._context: Any = None
        self._model = model
        # The offscreen buffer is drawn and cleared whole: no larger than a picture.
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        try:
            # Named here rather than chosen by MUJOCO_GL: nothing but EGL works in a thread
            # without a display.
            from mujoco.egl import GLContext

            self._gl = GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            # PyOpenGL, Mesa and MuJoCo each have errors of their own for a missing library, and
            # the first fails in freeing what it could not make, too.
            with contextlib.suppress(Exception):
                self.close()
            self._context = self._gl = None
            reason = " ".join(str(error).split())[:120]
            raise DriverError(
                f"cannot render: no usable EGL (on Debian or Ubuntu: apt-get install {GL_PACKAGES})"
                f"; {type(error).__name__}: {reason}"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 16)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._rgb = np.empty((height, width, 3), dtype=np.uint8)
        self._cameras = {name: self._camera(name) for name in VIEWS}

    def _camera(self, name: str) -> mujoco.MjvCamera:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(name).id
        return camera

    def render(
        self, data: mujoco.MjData, views: Sequence[str] = VIEWS
    ) -> dict[str, NDArray[np.uint8]]:
        """Pictures (height, width, 3) uint8 in BGR by name of view, each an array of its own.

        The positions in `data` must be up to date (`mujoco.mj_kinematics`). Raises KeyError for a
        view there is not.
        """
        self._gl.make_current()
        mujoco.mj_camlight(self._model, data)
        return {view: self._draw(data, view) for view in views}

    def _draw(self, data: mujoco.MjData, view: str) -> NDArray[np.uint8]:
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._cameras[view], everything, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._rgb, None, self._rect, self._context)
        # GL's first row is the lowest.
        cv2.flip(self._rgb, 0, dst=(picture := np.empty_like(self._rgb)))
        cv2.cvtColor(picture, cv2.COLOR_RGB2BGR, dst=picture)
        return picture

    def close(self) -> None:
        """Free the GL context; safe to call twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = None

    def __enter__(self) -> RigRenderer:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
