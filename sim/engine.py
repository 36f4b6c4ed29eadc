"""MuJoCo, imported so that the physics runs on a machine without any GL library.

`import mujoco` also imports a GL backend: without a display the default one (GLFW) cannot render,
and with EGL asked for but absent the import itself fails. Import `mujoco` from here instead.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["mujoco"]


def _import() -> Any:
    asked = os.environ.get("MUJOCO_GL")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
        # Mesa's software renderer: drawing in the thread that asks costs a tenth less in all than
        # handing tiles to a pool, and the other cores have work of their own. No GPU reads this.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        import mujoco
    except Exception:
        # PyOpenGL answers a missing GL library with errors of many types. Rendering says so in
        # one line when asked for pictures; the physics needs none.
        os.environ["MUJOCO_GL"] = "disable"
        import mujoco

        if asked is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = asked
    return mujoco


if TYPE_CHECKING:
    import mujoco
else:
    mujoco = _import()
