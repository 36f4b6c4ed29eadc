"""Which view a camera is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = ["view_of"]

_ZED = re.compile(r"ZED_(\d+)_(left|right)")


def view_of(camera: str, mapping: Mapping[str, str], views: Collection[str]) -> str | None:
    """The view that a camera's frames belong to, None when they are to be ignored.

    In this order: the camera's full name in the map; a name that is a view's; the serial number of
    a ZED's left picture in the map; any name that holds OAK, where the map has that.
    """
    if camera in mapping:
        view: str | None = mapping[camera]
    elif camera in views:
        view = camera
    elif zed := _ZED.fullmatch(camera):
        # The right picture of a stereo pair counts only when it is mapped by its full name.
        view = mapping.get(zed[1]) if zed[2] == "left" else None
    elif "OAK" in camera.upper():
        view = mapping.get("OAK")
    else:
        view = None
    return view if view in views else None
