"""Which view a camera is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = ["view_of"]

_ZED = re.compile(r"ZED_(\d+)_(left|right)")


def view_of(camera: str, mapping: Mapping[str, str], views: Collection[str]) -> str | None:
    """The view that a camera is, None for one that is no view: add it to the map.

    In this order: the camera's full name in the map; a name that is a view's; the serial number of
    a ZED's left picture in the map; any name that holds OAK, where the map has that. `views` are
    the policy's; one that is in the map alone is a view that the policy does not use.
    """
    if camera in mapping:
        return mapping[camera]
    if camera in views or camera in mapping.values():
        return camera
    if zed := _ZED.fullmatch(camera):
        # The right picture of a stereo pair counts only when it is mapped by its full name.
        return mapping.get(zed[1]) if zed[2] == "left" else None
    return mapping.get("OAK") if "OAK" in camera.upper() else None
