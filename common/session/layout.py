"""Where everything lies in a session's folder."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["FRAME_COLUMNS", "PART", "ROBOT_COLUMNS", "SAMPLE_ROW", "SessionError"]
__all__ += [
    "folder_name",
    "frames_name",
    "jpeg_name",
    "results_name",
    "robot_name",
    "row_file_name",
]
__all__ += ["safe_view", "sensor_name", "session_name", "stamp_of", "stamps_in"]

PART = ".part"
"""Ends the name of a file that still grows, or whose writer was killed."""

ROBOT_COLUMNS = (
    "recv_timestamp",
    "origin_timestamp",
    "send_timestamp",
    "force_placeholder",
    *(f"joint_{n}" for n in range(1, 7)),
    *(f"pose_{axis}" for axis in "xyzabr"),
)

FRAME_COLUMNS = (
    "view",
    "file",
    "camera",
    "seq",
    "timestamp",
    "send_timestamp",
    "recv_timestamp",
    "captured_at",
    "size",
)

SAMPLE_ROW = np.dtype([("recv", "<f8"), ("timestamp", "<f8"), ("send", "<f8"), ("force", "<f4")])
"""What is kept beside an A-scan while the file of A-scans grows."""

_STAMP = re.compile(r"\d{8}_\d{6}")
_VIEW = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class SessionError(ValueError):
    """A session that cannot be used as asked; the message is one line that says what to do."""


def stamp_of(at: float) -> str:
    """UNIX seconds as they stand in names: local time to the second."""
    return time.strftime("%Y%m%d_%H%M%S", time.localtime(at))


def folder_name(stamp: str) -> str:
    """The folder of a session (and episode) that began at `stamp`."""
    return f"async_inference_{stamp}"


def results_name(stamp: str) -> str:
    """The inference results: a JSON list."""
    return f"inference_results_{stamp}.json"


def robot_name(stamp: str) -> str:
    """The robot's states: CSV with ROBOT_COLUMNS."""
    return f"robot_state_{stamp}.csv"


def sensor_name(stamp: str) -> str:
    """The force samples and their A-scans: an npz of plain arrays, not compressed."""
    return f"sensor_data_{stamp}.npz"


def row_file_name(stamp: str) -> str:
    """SAMPLE_ROWs beside a growing sensor file; gone once that is finished."""
    return f"sensor_data_{stamp}.rows{PART}"


def frames_name(stamp: str) -> str:
    """The index of the pictures: CSV with FRAME_COLUMNS."""
    return f"frames_{stamp}.csv"


def session_name(stamp: str) -> str:
    """What the receiver says of the recording: JSON."""
    return f"session_{stamp}.json"


def jpeg_name(camera: str, timestamp: float, again: int = 0) -> str:
    """A picture's file; `again` tells pictures of one millisecond apart."""
    return f"{camera}_{timestamp:.3f}{f'_{again}' if again else ''}.jpg"


def safe_view(view: str) -> str:
    """A view's name if it can be a folder's; SessionError otherwise."""
    if not _VIEW.fullmatch(view):
        raise SessionError(f"view {view!r} cannot be a folder's name: letters, digits, _ . - only")
    return view


def stamps_in(folder: Path, prefix: str, suffix: str) -> Iterator[tuple[str, Path]]:
    """Stamp and path of the files in `folder` named prefix + stamp + suffix, in time order."""
    for path in sorted(folder.glob(f"{prefix}*{suffix}")):
        stamp = path.name[len(prefix) : len(path.name) - len(suffix)]
        # A second recording within one second has a number behind its stamp.
        if _STAMP.match(stamp):
            yield stamp, path
