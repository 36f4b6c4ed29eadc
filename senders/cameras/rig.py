"""The cameras to send: those of a rig that a YAML file lists, of one driver, or all attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.program import OptionError, ProgramError, check_number
from senders import registry
from senders.cameras import DRIVERS
from senders.drivers import CameraDriver, Frame, Recorded

__all__ = ["RigCamera", "Source", "open_sources"]


@dataclass(frozen=True)
class RigCamera:
    """One camera of a rig, as a YAML file lists it."""

    driver: str
    """zed, oak, opencv, …"""
    name: str
    """Its name on the wire."""
    source: object = ""
    """Serial number, device id, /dev path, URL or file; without it, the only one there is."""
    width: int | None = None
    """Pixels; without it, what the program was told."""
    height: int | None = None
    """Pixels."""
    fps: float | None = None
    """Pictures a second."""
    options: tuple[str, ...] = ()
    """Options of the driver, each KEY=VALUE."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        where = f"rig: {self.name}:"
        # The same as the wire takes: it becomes part of a file's name.
        bad = not self.name.isprintable() or "/" in self.name or "\\" in self.name
        if bad or not 0 < len(self.name.encode()) <= 128:
            raise OptionError(f"rig: not a camera's name: {self.name!r}")
        if not isinstance(self.source, str | int):
            raise OptionError(f"{where} source must be a text or a number, not {self.source!r}")
        for key, value in (("width", self.width), ("height", self.height)):
            if value is not None:
                check_number(f"{where} {key}", value, 16, 4096)
        if self.fps is not None:
            check_number(f"{where} fps", self.fps, 0.1, 240)
        registry.choose(DRIVERS, self.driver)


@dataclass(frozen=True, slots=True)
class Source:
    """A camera to send, and how many of its pictures a second."""

    camera: CameraDriver
    fps: float


class _Renamed:
    """A camera under the name that its rig gives it."""

    def __init__(self, camera: CameraDriver, name: str) -> None:
        self._camera, self._name = camera, name

    @property
    def name(self) -> str:
        return self._name

    def open(self) -> None:
        self._camera.open()

    def read(self, timeout_s: float) -> Frame | None:
        return self._camera.read(timeout_s)

    def close(self) -> None:
        self._camera.close()


class _RenamedRecording(_Renamed):
    recorded = True


def _renamed(camera: CameraDriver, name: str) -> CameraDriver:
    if camera.name == name:
        return camera
    return (_RenamedRecording if isinstance(camera, Recorded) else _Renamed)(camera, name)


def open_sources(
    rig: Sequence[RigCamera],
    driver: str | None,
    given: Sequence[str],
    names: Sequence[str],
    offered: Mapping[str, Any],
) -> list[Source]:
    """The cameras called `names` (all when empty) of the rig, else of `driver`, else of any.

    `offered` (width, height, fps, quality) goes to the drivers, `given` are the user's `key=value`
    options of the one `driver`. Raises OptionError, also for a name that is not there, and
    ProgramError when there is no camera.
    """
    if rig:
        wanted = [camera for camera in rig if not names or camera.name in names]
        found = [_of_rig(camera, offered) for camera in wanted]
        there = [camera.name for camera in rig]
    else:
        made = _of_drivers(driver, given, names, offered)
        found = [Source(c, offered["fps"]) for c in made if not names or c.name in names]
        there = [camera.name for camera in made]
    if missing := [name for name in names if name not in there]:
        raise OptionError(
            f"--cameras: no {', '.join(missing)}; there are: {', '.join(there) or 'none'}"
        )
    if len(set(there)) < len(there):
        raise OptionError(f"--cameras: a name comes twice: {', '.join(there)}")
    return found


def _of_rig(entry: RigCamera, offered: Mapping[str, Any]) -> Source:
    own = {"width": entry.width, "height": entry.height, "fps": entry.fps}
    settings = {**offered, **{key: value for key, value in own.items() if value is not None}}
    source = str(entry.source)
    # A driver of devices looks for a source; one of made-up pictures has them by name.
    settings |= {"sources": (source,), "names": (source or entry.name,)}
    made: list[CameraDriver] = registry.make(DRIVERS, entry.driver, settings, entry.options)
    if len(made) != 1:
        there = ", ".join(camera.name for camera in made) or "none"
        raise OptionError(f"rig: {entry.name}: `source` must pick one of driver {entry.driver}'s "
                          f"cameras: {there}")  # fmt: skip
    return Source(_renamed(made[0], entry.name), settings["fps"])


def _of_drivers(
    driver: str | None, given: Sequence[str], names: Sequence[str], offered: Mapping[str, Any]
) -> list[CameraDriver]:
    picked = [driver] if driver else [k for k, e in DRIVERS.items() if e.real and e.installed]
    if not picked:
        picked = [registry.choose(DRIVERS, None)]  # says what there is to pick from
    settings = {**offered, **({"names": tuple(names)} if names else {})}
    made: list[CameraDriver] = []
    for name in picked:
        made += registry.make(DRIVERS, name, settings, given)
    if not made and driver:
        raise ProgramError(f"driver {driver} found no camera: is one plugged in? --list shows more")
    if not made:
        known = ", ".join(entry.describe(key) for key, entry in DRIVERS.items())
        raise OptionError(
            f"no driver was picked and no camera is attached ({', '.join(picked)}); "
            f"pick one with --driver: {known}"
        )
    return made
