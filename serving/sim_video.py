"""A video of an episode: what the policy saw, with a line under it, written beside the run."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.program import ProgramError

__all__ = ["Video", "plays"]

logger = logging.getLogger("serving.sim_client")

_STRIP, _FONT = 22, cv2.FONT_HERSHEY_SIMPLEX
_LEAST_SIDE, _MOST_SIDE = 384, 1920
_MOST_WAITING = 64
_INK, _PAPER, _ALARM = (235, 235, 235), 24, (60, 60, 220)


class Video:
    """One mp4 file, encoded by a thread of its own; `add` waits only when far too much waits."""

    def __init__(self, path: Path, fps: float) -> None:
        """Write to `path`; nothing is there before the first frame."""
        self._path, self._fps = path, fps
        self._frames: queue.Queue[tuple[NDArray[np.uint8], str, bool] | None]
        self._frames = queue.Queue(_MOST_WAITING)
        self._written = 0
        self._problem = ""
        self._thread = threading.Thread(target=self._write, name="video", daemon=True)
        self._thread.start()

    def add(self, picture: NDArray[np.uint8] | None, caption: str, alarm: bool) -> None:
        """A frame (height, width, 3) RGB with its caption; `alarm` colours it."""
        if picture is not None:
            self._frames.put((picture, caption, alarm))

    def close(self) -> str:
        """Finish the file; its path, or empty where there is none. ProgramError if it is broken."""
        self._frames.put(None)
        self._thread.join()
        if self._problem:
            raise ProgramError(self._problem)
        if not self._written:
            logger.warning("[SIM] no video: the environment gives no picture")
            return ""
        if (count := plays(self._path)) != self._written:
            raise ProgramError(f"{self._path}: {self._written} frames written, {count} can be read")
        return str(self._path)

    def _write(self) -> None:
        writer: cv2.VideoWriter | None = None
        while (item := self._frames.get()) is not None:
            if self._problem:
                continue  # whoever adds must not wait for ever
            frame = _drawn(*item)
            if writer is None:
                writer = self._open(frame.shape[1], frame.shape[0])
                size = frame.shape
            if writer is not None and frame.shape == size:
                writer.write(frame)
                self._written += 1
        if writer is not None:
            writer.release()

    def _open(self, width: int, height: int) -> cv2.VideoWriter | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._problem = f"the video cannot be written: {self._path}: {error.strerror}"
            return None
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._path), code, self._fps, (width, height))
        if not writer.isOpened():
            self._problem = f"the video cannot be written: {self._path} (no encoder, or no place)"
            return None
        return writer


def plays(path: Path) -> int:
    """How many frames can be read of a video."""
    film, count = cv2.VideoCapture(str(path)), 0
    while film.grab():
        count += 1
    film.release()
    return count


def _drawn(picture: NDArray[np.uint8], caption: str, alarm: bool) -> NDArray[np.uint8]:
    """BGR, of a size that can be looked at and has even sides, with the caption under it."""
    height, width = picture.shape[:2]
    scale = max(_LEAST_SIDE / min(height, width), 1.0)
    scale *= min(_MOST_SIDE / (scale * max(height, width)), 1.0)
    size = [max(round(side * scale) // 2 * 2, 2) for side in (width, height)]
    frame = np.full((size[1] + _STRIP, size[0], 3), _PAPER, np.uint8)
    way = cv2.INTER_NEAREST if scale >= 2 else cv2.INTER_AREA
    frame[: size[1]] = cv2.resize(picture, size, interpolation=way)[..., ::-1]
    ink = _ALARM if alarm else _INK
    small = min(1.0, size[0] / 420)
    place = (6, size[1] + 15)
    cv2.putText(frame, caption, place, _FONT, 0.42 * small, ink, 1, cv2.LINE_AA)
    if alarm:
        cv2.rectangle(frame, (0, 0), (size[0] - 1, size[1] - 1), ink, 2)
    return frame
