"""Recorded sessions as a LeRobotDataset (version 3), written by the LeRobot library itself.

Every run of rows (see `session_grid`) becomes an episode. The library comes with
`pip install '.[lerobot]'` into an environment of its own, of Python 3.12.
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from common.jpeg import JpegError, jpeg_size
from common.session import FrameEntry, Session, SessionError
from scripts.session_grid import GridOptions, Run, runs_of

__all__ = ["LeRobotOptions", "decode", "export"]

_ENCODER_PATIENCE_S = 120.0
_QUEUED_FRAMES = 30
_MOST_PIXELS = 1 << 26
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)
_PRESETS = {"h264": "veryfast", "hevc": "ultrafast"}
_JOINT_NAMES = [f"joint_{n}" for n in range(1, 7)]

Image = NDArray[np.uint8]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LeRobotOptions(GridOptions):
    """What goes into the dataset and how."""

    width: int = 640
    """Width of the videos, the height follows; 0 keeps the pictures' own size."""
    codec: Literal["h264", "hevc", "av1", "auto"] = "h264"
    """Of the videos; auto takes a hardware encoder where there is one."""
    quality: int = 23
    """Constant rate factor: lower is better and larger."""
    pose: bool = False
    """Also observation.pose, (6,) mm and degrees."""
    aline: bool = False
    """Also observation.aline, the newest A-scan."""
    repo_id: str = ""
    """The dataset's name; empty: local/ and the folder's name."""
    robot_type: str = "dualrate"
    """What the dataset says of the robot."""
    workers: int = 0
    """Threads that decode pictures; 0: one a core."""

    def __post_init__(self) -> None:
        """ValueError for values that make no sense."""
        super().__post_init__()
        if not (self.width == 0 or 16 <= self.width <= 8192):
            raise ValueError(f"width must be 16 to 8192, or 0 for the pictures' own: {self.width}")
        if not 0 <= self.quality <= 63:
            raise ValueError(f"quality must be 0 to 63, not {self.quality}")


def export(
    sessions: Session | Sequence[Session],
    out: Path,
    options: LeRobotOptions | None = None,
    progress: Progress = lambda part, text: None,
) -> Path:
    """Write sessions into one new dataset at `out`, and return that.

    `progress` is called with how much is done (0 to 1) and what is being done. Raises SessionError,
    one line, for sessions that cannot be used, an `out` that exists and a library that is missing.
    """
    options = options or LeRobotOptions()
    sessions = [sessions] if isinstance(sessions, Session) else list(sessions)
    if not sessions:
        raise SessionError("no session to export")
    if out.exists():
        raise SessionError(f"{out}: exists already; name a new folder")
    planned = [(session, run) for session in sessions for run in _runs(session, options)]
    first, run = planned[0]
    features = _features(first, run, options)
    for session, other in planned[1:]:
        if (found := _features(session, other, options)) != features:
            odd = sorted(k for k in features | found if features.get(k) != found.get(k))
            raise SessionError(f"{session.folder}: unlike {first.folder} in {', '.join(odd)}")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    dataset = _create(part, out, _one_rate(planned), features, options)
    try:
        _write(dataset, planned, features, options, progress)
        dataset.finalize()
        part.rename(out)
    except BaseException:
        dataset.finalize()
        shutil.rmtree(part, ignore_errors=True)
        raise
    progress(1.0, f"{len(planned)} episodes")
    return out


def _runs(session: Session, options: LeRobotOptions) -> list[Run]:
    if session.unfinished:
        raise SessionError(f"{session.folder}: not finished; run scripts/recover_session.py on it")
    return runs_of(session, options)


def _one_rate(planned: list[tuple[Session, Run]]) -> int:
    rates = sorted({run.fps for _, run in planned})
    if len(rates) > 1:
        raise SessionError(f"sessions of different rates ({rates} Hz); give one as fps")
    return rates[0]


def _features(session: Session, run: Run, options: LeRobotOptions) -> dict[str, dict[str, Any]]:
    """LeRobot's description of a row of this run."""

    def values(names: list[str]) -> dict[str, Any]:
        return {"dtype": "float32", "shape": (len(names),), "names": names}

    features: dict[str, dict[str, Any]] = {}
    for view, entries in run.pictures.items():
        width, height = _target_size(entries[0], options.width)
        features[f"observation.images.{view}"] = {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    if run.states is not None:
        features["observation.state"] = values(_JOINT_NAMES)
        if options.pose:
            features["observation.pose"] = values(["x", "y", "z", "alpha", "beta", "gamma"])
    if run.samples is not None:
        features["observation.force"] = values(["force"])
        if options.aline and (length := session.samples.alines.shape[1]):
            features["observation.aline"] = values([f"depth_{n}" for n in range(length)])
    width = run.actions.shape[1]
    features["action"] = values([*_JOINT_NAMES, "gripper"][:width])
    return features


def _target_size(entry: FrameEntry, wanted: int) -> tuple[int, int]:
    """Width and height of the video of a view: even, as 4:2:0 needs."""
    height, width = decode(entry, None).shape[:2]
    target = wanted or width
    return target // 2 * 2, max(round(height * target / width / 2) * 2, 2)


def decode(entry: FrameEntry, size: tuple[int, int] | None) -> Image:
    """One picture as (height, width, 3) RGB, scaled to `size` (width, height) where that is given.

    The JPEG is decoded at the smallest scale that is not below `size`. SessionError when it cannot
    be decoded.
    """
    data = entry.read()
    try:
        width, height = jpeg_size(data)
        if width * height > _MOST_PIXELS:
            raise SessionError(f"{entry.path}: {width} x {height} is too large for a picture")
        flag = cv2.IMREAD_COLOR if size is None else _scale(width, height, size)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except (JpegError, cv2.error):
        image = None
    if image is None:
        raise SessionError(f"{entry.path}: cannot be decoded; remove it and its line in the index")
    if size is not None and (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _scale(width: int, height: int, size: tuple[int, int]) -> int:
    """How to decode a picture that is to become `size`."""
    for factor, flag in _REDUCED:
        if width // factor >= size[0] and height // factor >= size[1]:
            return flag
    return cv2.IMREAD_COLOR


def _create(
    part: Path, out: Path, fps: int, features: dict[str, Any], options: LeRobotOptions
) -> Any:
    os.environ.setdefault("SVT_LOG", "1")  # errors only, of the AV1 encoder
    try:
        import av.logging
        from datasets import disable_progress_bars
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets import LeRobotDataset
    except ImportError as error:
        raise SessionError(
            f"LeRobot cannot be loaded ({error}): pip install '.[lerobot]' into an environment "
            "of Python 3.12"
        ) from None
    av.logging.set_libav_level(av.logging.ERROR)  # else encoders print their statistics
    disable_progress_bars()
    quiet = {"x265-params": "log-level=error"} if options.codec == "hevc" else {}
    try:
        encoder = RGBEncoderConfig(
            vcodec=options.codec,
            crf=options.quality,
            preset=_PRESETS.get(options.codec),
            extra_options=quiet,
        )
        return LeRobotDataset.create(
            options.repo_id or f"local/{out.name}",
            fps,
            features,
            root=part,
            robot_type=options.robot_type,
            video_backend="pyav",
            rgb_encoder=encoder,
            streaming_encoding=True,
            encoder_queue_maxsize=_QUEUED_FRAMES,
        )
    except (OSError, ValueError) as error:
        raise SessionError(f"{out}: {' '.join(str(error).split())}") from None


def _write(
    dataset: Any,
    planned: list[tuple[Session, Run]],
    features: dict[str, dict[str, Any]],
    options: LeRobotOptions,
    progress: Progress,
) -> None:
    total, done = sum(len(run) for _, run in planned), 0
    workers = options.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers, "decode") as pool:
        for number, (session, run) in enumerate(planned, 1):
            sizes = {
                view: features[f"observation.images.{view}"]["shape"][1::-1]
                for view in run.pictures
            }
            for k, images in enumerate(_pictures(pool, run, sizes, ahead=2 * workers)):
                _wait_for_encoders(dataset)
                dataset.add_frame(_row(session, run, k, features) | images)
                done += 1
                if k % run.fps == 0:
                    progress(done / total, f"episode {number} of {len(planned)}")
            dataset.save_episode()
            _check_videos(dataset, len(run))


def _pictures(
    pool: ThreadPoolExecutor, run: Run, sizes: dict[str, tuple[int, int]], ahead: int
) -> Iterator[dict[str, Image]]:
    """The pictures of each row, decoded ahead; one that stays the newest is decoded once."""
    waiting: queue.SimpleQueue[dict[str, Future[Image]]] = queue.SimpleQueue()
    newest: dict[str, tuple[FrameEntry, Future[Image]]] = {}

    def begin(k: int) -> None:
        for view, entries in run.pictures.items():
            if view not in newest or newest[view][0] is not entries[k]:
                newest[view] = (entries[k], pool.submit(decode, entries[k], sizes[view]))
        waiting.put({view: future for view, (_, future) in newest.items()})

    begun = 0
    for k in range(len(run)):
        while begun < min(k + 1 + ahead, len(run)):
            begin(begun)
            begun += 1
        images = waiting.get()
        yield {f"observation.images.{view}": future.result() for view, future in images.items()}


def _row(session: Session, run: Run, k: int, features: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"action": run.actions[k], "task": run.tasks[k]}
    if run.states is not None:
        row["observation.state"] = session.states.joints[run.states[k]].astype(np.float32)
        if "observation.pose" in features:
            row["observation.pose"] = session.states.pose[run.states[k]].astype(np.float32)
    if run.samples is not None:
        row["observation.force"] = session.samples.forces[run.samples[k]].reshape(1)
        if "observation.aline" in features:
            row["observation.aline"] = np.array(session.samples.alines[run.samples[k]])
    return row


def _wait_for_encoders(dataset: Any) -> None:
    """Wait while an encoder is behind: LeRobot's drop pictures when their queue is full."""
    encoder = getattr(dataset.writer, "_streaming_encoder", None)
    for waiting in getattr(encoder, "_frame_queues", {}).values():
        with waiting.not_full:
            if not waiting.not_full.wait_for(
                lambda waiting=waiting: waiting._qsize() < waiting.maxsize, _ENCODER_PATIENCE_S
            ):
                raise SessionError("a video encoder does not go on; try another codec")


def _check_videos(dataset: Any, rows: int) -> None:
    """SessionError when a video of the episode just saved is not as long as its rows."""
    saved = dataset.meta.latest_episode
    for key in dataset.meta.video_keys:
        start, end = saved[f"videos/{key}/from_timestamp"], saved[f"videos/{key}/to_timestamp"]
        frames = (np.ravel(end)[0] - np.ravel(start)[0]) * dataset.fps
        if abs(frames - rows) > 0.5:
            raise SessionError(f"{key}: {frames:.1f} pictures were encoded of {rows}")
