"""Sessions as LeRobotDatasets: written and loaded back by the LeRobot library itself."""

from __future__ import annotations

import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("datasets", reason="LeRobot's extra `dataset` is missing: make test-lerobot")

from common.session import Session, SessionError
from scripts import lerobot_export
from scripts.lerobot_export import LeRobotOptions, decode, export
from scripts.session_grid import Run, runs_of
from tests.sessions import START, Made, make_session

SIZE = (320, 180)


def two_sessions(folder: Path) -> list[Session]:
    first = Made(seconds=3.0, size=SIZE)
    second = Made(seconds=2.0, size=SIZE, start=START + 60.0, task="and back")
    return [Session(make_session(folder, made)) for made in (first, second)]


def load(out: Path) -> Any:
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("someone/insertions", root=out, video_backend="pyav")


def rows_of(dataset: Any, length: int, start: int) -> list[dict[str, Any]]:
    return [dataset[k] for k in range(start, start + length)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Session], list[Run], Any]:
    folder = tmp_path_factory.mktemp("export")
    sessions = two_sessions(folder)
    options = LeRobotOptions(width=160, pose=True, aline=True, repo_id="someone/insertions")
    told: list[tuple[float, str]] = []
    out = export(sessions, folder / "out", options, lambda part, text: told.append((part, text)))
    assert out == folder / "out"
    assert told[-1] == (1.0, "2 episodes")
    assert all(a[0] <= b[0] for a, b in pairwise(told)) and len(told) > 4
    assert sorted(path.name for path in folder.glob("out*")) == ["out"]
    runs = [run for session in sessions for run in runs_of(session, options)]
    return sessions, runs, load(out)


def test_episodes_tasks_and_description(exported: tuple[list[Session], list[Run], Any]) -> None:
    _, runs, dataset = exported
    assert dataset.num_episodes == 2
    assert len(dataset) == sum(map(len, runs)) and len(runs) == 2
    assert dataset.fps == 10
    assert dataset.meta.robot_type == "dualrate"
    assert dataset.features["observation.images.View1"]["shape"] == (90, 160, 3)
    assert dataset.features["action"]["names"][-1] == "gripper"
    assert dataset.features["observation.aline"]["shape"] == (1025,)
    ends = np.cumsum([len(run) for run in runs])
    assert [dataset[int(k)]["task"] for k in (0, ends[0] - 1, ends[0], ends[1] - 1)] == [
        "touch the port",
        "touch the port",
        "and back",
        "and back",
    ]
    assert int(dataset[int(ends[0])]["episode_index"]) == 1
    assert int(dataset[int(ends[0])]["frame_index"]) == 0


def test_values_are_those_of_the_session(exported: tuple[list[Session], list[Run], Any]) -> None:
    sessions, runs, dataset = exported
    start = 0
    for session, run in zip(sessions, runs, strict=True):
        for k, row in enumerate(rows_of(dataset, len(run), start)):
            state, sample = run.states[k], run.samples[k]
            assert row["timestamp"] == pytest.approx(k / 10)
            assert row["observation.state"].numpy() == pytest.approx(session.states.joints[state])
            assert row["observation.pose"].numpy() == pytest.approx(session.states.pose[state])
            assert float(row["observation.force"]) == session.samples.forces[sample]
            assert (row["observation.aline"].numpy() == session.samples.alines[sample]).all()
            assert (row["action"].numpy() == run.actions[k]).all()
        start += len(run)


def test_every_picture_is_the_one_of_its_row(
    exported: tuple[list[Session], list[Run], Any],
) -> None:
    """Near its own source, and nearer to it than to the pictures before and after."""
    _, runs, dataset = exported
    colour = dataset[0]["observation.images.View1"].numpy() * 255
    assert np.median(colour, axis=(1, 2)) == pytest.approx([160, 90, 0], abs=8)
    start = 0
    for run in runs:
        for view, entries in run.pictures.items():
            sources = [decode(entry, (160, 90)).astype(float) for entry in entries]
            for k, row in enumerate(rows_of(dataset, len(run), start)):
                image = row[f"observation.images.{view}"].numpy().transpose(1, 2, 0) * 255
                apart = [float(np.abs(image - other).mean()) for other in sources]
                assert apart[k] < 6.0, (view, k)
                assert apart[k] == min(apart), (view, k)
        start += len(run)


def test_statistics_are_there_for_training(exported: tuple[list[Session], list[Run], Any]) -> None:
    _, runs, dataset = exported
    stats = dataset.meta.stats
    actions = np.concatenate([run.actions for run in runs])
    assert stats["action"]["mean"] == pytest.approx(actions.mean(0), rel=1e-3)
    assert stats["observation.images.View1"]["mean"].shape == (3, 1, 1)


def test_demonstrations_and_other_codecs(tmp_path: Path) -> None:
    made = Session(make_session(tmp_path, Made(seconds=1.5, size=SIZE)))
    options = LeRobotOptions(fps=15, width=0, codec="av1", quality=30, actions="next_state")
    dataset = load(export(made, tmp_path / "out", options))
    assert dataset.fps == 15
    assert dataset.features["observation.images.View2"]["shape"] == (180, 320, 3)
    assert dataset.features["action"]["shape"] == (6,)
    assert "observation.pose" not in dataset.features
    for k in range(len(dataset) - 1):
        after = dataset[k + 1]["observation.state"].numpy()
        assert dataset[k]["action"].numpy() == pytest.approx(after)


def test_a_slow_encoder_loses_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot drops a picture when an encoder's queue is full; the export waits instead."""
    from lerobot.datasets import compute_stats

    shrink, pause = compute_stats.auto_downsample_height_width, threading.Event()

    def slow(image: np.ndarray) -> np.ndarray:
        pause.wait(0.15)  # LeRobot waits 0.1 s for a place in the queue
        return np.asarray(shrink(image))

    monkeypatch.setattr(compute_stats, "auto_downsample_height_width", slow)
    monkeypatch.setattr(lerobot_export, "_QUEUED_FRAMES", 1)
    made = Session(make_session(tmp_path, Made(seconds=1.5, size=SIZE)))
    options = LeRobotOptions(codec="hevc")
    (run,) = runs_of(made, options)
    assert len(load(export(made, tmp_path / "out", options))) == len(run)


def test_lost_pictures_are_noticed_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.video_utils import StreamingVideoEncoder

    fed = StreamingVideoEncoder.feed_frame

    def lossy(self: Any, key: str, image: np.ndarray) -> None:
        lossy.count += 1  # type: ignore[attr-defined]
        if lossy.count != 9:  # type: ignore[attr-defined]
            fed(self, key, image)

    lossy.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(StreamingVideoEncoder, "feed_frame", lossy)
    made = Session(make_session(tmp_path, Made(seconds=1.5, size=SIZE)))
    with pytest.raises(SessionError, match="pictures were encoded of"):
        export(made, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


def test_a_broken_picture_ends_the_export_and_leaves_nothing(tmp_path: Path) -> None:
    made = Session(make_session(tmp_path, Made(seconds=1.5, size=SIZE)))
    (run,) = runs_of(made, LeRobotOptions())
    run.pictures["View2"][7].path.write_bytes(b"\xff\xd8 no more \xff\xd9")
    with pytest.raises(SessionError, match="cannot be decoded"):
        export(made, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
