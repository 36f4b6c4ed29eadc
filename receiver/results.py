"""Writes the inference results, an episode a folder, as valid JSON at every moment."""

from __future__ import annotations

import json
import logging
import queue
import threading
from typing import Any, BinaryIO

from common.session import layout
from receiver.actions import ActionRecord
from receiver.folders import SessionFolder, SessionFolders

__all__ = ["ResultsWriter"]

logger = logging.getLogger(__name__)

_QUEUE = 4096
_POLL_S = 0.1
_END = b"\n]\n"


def record_json(record: ActionRecord) -> dict[str, Any]:
    """The entry of one action; the first six keys are those of older rigs."""
    robot = record.robot
    return {
        "timestamp": record.at,
        "actions": record.actions.tolist(),
        "delta": record.delta.tolist(),
        "inference_time": record.inference_s,
        "vl_update_number": record.update.number,
        "robot_state": robot
        and {
            "joints": list(robot.joints),
            "pose": list(robot.pose),
            "timestamp": robot.origin_timestamp,
        },
        "episode": record.episode,
        "action_number": record.number,
        "deadline": record.deadline,
        "lateness_ms": record.lateness_s * 1e3,
        "vl_started_at": record.update.started_at,
        "vl_ready_at": record.update.ready_at,
        "vl_reuse": record.feature_use,
        "feature_age_ms": record.feature_age_s * 1e3,
        "sensor_samples": record.sensor_samples,
        "force": record.force_n,
        "proposed": record.proposed.tolist(),
        "limits_applied": sorted(record.cut),
        "task": record.update.task,
    }


class _ResultsFile:
    """A JSON list that grows: its end is overwritten by each batch, so that it is always whole."""

    def __init__(self, place: SessionFolder) -> None:
        self._file: BinaryIO = open(  # noqa: SIM115  kept open across calls
            place.path / layout.results_name(place.stamp), "xb"
        )
        self._file.write(b"[" + _END)
        self._file.flush()
        self._entries = 0

    def append(self, records: list[ActionRecord]) -> None:
        """Add entries and hand them to the operating system."""
        entries = [json.dumps(record_json(record)) for record in records]
        separator = "\n" if self._entries == 0 else ",\n"
        self._file.seek(-len(_END), 2)
        self._file.write((separator + ",\n".join(entries)).encode() + _END)
        self._file.flush()
        self._entries += len(entries)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ResultsWriter:
    """Takes records from the fast loop without making it wait; a thread of its own writes them."""

    def __init__(self, folders: SessionFolders) -> None:
        """Write into the episodes' folders."""
        self._folders = folders
        self._queue: queue.Queue[ActionRecord] = queue.Queue(_QUEUE)
        self._file: _ResultsFile | None = None
        self._episode = -1
        self._broken = False
        self.lost = 0

    def record(self, record: ActionRecord) -> None:
        """Queue one record; counted as lost when the disk cannot keep up."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set and everything queued before is on disk."""
        try:
            while not stop.is_set():
                self._write_queued(_POLL_S)
        finally:
            self._write_queued()
            if self._file:
                self._file.close()

    def _write_queued(self, wait_s: float = 0.0) -> None:
        """Write what is queued, after waiting for up to `wait_s` where nothing is.

        Each record as it comes: dozens at once would hold Python's lock for longer than a tick
        can wait.
        """
        batch: list[ActionRecord] = []
        if wait_s:
            try:
                batch.append(self._queue.get(timeout=wait_s))
            except queue.Empty:
                return
        while not self._queue.empty():
            batch.append(self._queue.get_nowait())
        while batch:
            episode = batch[0].episode
            count = next((i for i, r in enumerate(batch) if r.episode != episode), len(batch))
            self._write(episode, batch[:count])
            batch = batch[count:]

    def _write(self, episode: int, records: list[ActionRecord]) -> None:
        try:
            if episode != self._episode or self._file is None:
                self._open(episode, records[0].episode_at)
            assert self._file is not None
            self._file.append(records)
            self._broken = False
        except OSError as error:
            self.lost += len(records)
            if not self._broken:
                self._broken = True
                logger.error(
                    "inference results cannot be written (%s): inference goes on without them",
                    error,
                )

    def _open(self, episode: int, started_at: float) -> None:
        if self._file:
            self._file.close()
            self._file = None
        self._file = _ResultsFile(self._folders.of_episode(episode, started_at))
        self._episode = episode
