"""The film of a run: each picture is of the place that the trace names, or a line says why not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from scripts import make_clip
from senders.drivers import DriverError
from sim.layout import HOME_DEG, RigConfig
from sim.model import build_model
from sim.rendering import RigRenderer
from sim.rig import InsertionRig
from tests.scripts.written_run import MOVED_DEG, without_seed, write_score, write_trace

Clip = Callable[..., int]
WIDTH, HEIGHT = 160, 90
BAR = 28


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_trace(folder / "rig.csv")
    write_score(folder / "score.jsonl")
    return folder


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> Clip:
    def make(*more: str) -> int:
        given = [str(run), "--out", str(tmp_path / "a.gif"), "--width", str(WIDTH), "--fps", "4"]
        monkeypatch.setattr(sys, "argv", ["make_clip.py", *given, *more])
        return make_clip.main()

    return make


@pytest.fixture(scope="module")
def rendering() -> None:
    try:
        RigRenderer(build_model(), 32, 32).close()
    except DriverError as error:
        pytest.skip(str(error))


def frames(path: Path) -> list[NDArray[np.uint8]]:
    """The film's pictures, four a second; Pillow makes one longer one of those that are alike."""
    shown = []
    with Image.open(path) as film:
        for frame in ImageSequence.Iterator(film):
            picture = np.asarray(frame.convert("RGB"))
            shown += [picture] * round(frame.info["duration"] / 250)
    return shown


def seen(seed: int, joints: tuple[float, ...]) -> NDArray[np.uint8]:
    """What View3 is to show."""
    rig = InsertionRig(RigConfig(), seed)
    rig.reset(seed, joints)
    rig.data.qpos[9] = 0.0
    rig.refresh()
    with RigRenderer(rig.model, WIDTH, HEIGHT) as renderer:
        return np.asarray(cv2.cvtColor(renderer.render(rig.data)["View3"], cv2.COLOR_BGR2RGB))


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.usefixtures("rendering")
def test_the_film_shows_each_episode_where_its_port_was(
    clip: Clip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clip("--views", "View3", "View1", "--seconds", "60") == 0
    assert "a.gif: 10 pictures" in capsys.readouterr().out
    pictures = frames(tmp_path / "a.gif")
    assert len(pictures) == 10
    assert pictures[0].shape == (HEIGHT + BAR, 2 * WIDTH, 3)
    left = [picture[:HEIGHT, :WIDTH] for picture in pictures]
    # Far fewer colours, and yet the right place is much nearer than the seed's neighbour.
    for index, seed, joints in ((1, 11, HOME_DEG), (4, 11, MOVED_DEG), (8, 12, HOME_DEG)):
        right, wrong = seen(seed, joints), seen(23 - seed, joints)
        assert apart(left[index], right) < 0.5 * apart(left[index], wrong), index
    captions = [picture[HEIGHT:] for picture in pictures]
    assert apart(captions[1], captions[4]) > 1 and apart(captions[1], captions[8]) > 1


@pytest.mark.usefixtures("rendering")
def test_a_run_that_nobody_judged_has_a_film_too(clip: Clip, run: Path, tmp_path: Path) -> None:
    (run / "score.jsonl").unlink()
    assert clip("--views", "View2", "--seconds", "60") == 0
    assert len(frames(tmp_path / "a.gif")) == 10


def test_the_caption_counts_what_was_judged_before(run: Path) -> None:
    options = make_clip.Options(run=run, fps=4.0)
    moments, score = make_clip._moments(options), [{"number": 0, "success": True}]
    said = [make_clip._caption(moment, score) for moment in moments]
    assert said[1] == "episode 1: approaching   succeeded so far: 0 of 0"
    assert said[4].startswith("episode 1: in the port, 2.25 mm to the tissue (wanted 2.0)   ")
    assert said[8] == "episode 2: approaching   succeeded so far: 1 of 1"
    assert make_clip._caption(moments[8], []) == "episode 2: approaching"


def empty(run: Path) -> None:
    path = run / "rig.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def standing(run: Path) -> None:
    path = run / "rig.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:40]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda run: (run / "rig.csv").unlink(), [], "No such file or directory; give the folder"),
        (empty, [], "the arm never moved in these 0 rows"),
        (standing, [], "the arm never moved in these 39 rows"),
        (lambda run: without_seed(run / "rig.csv"), [], "no column seed: an older rig wrote it"),
        (lambda run: (run / "rig.csv").write_bytes(b"\xff\x00"), [], "not a record of the rig"),
        (lambda run: (run / "score.jsonl").write_text("{}\n"), [], "no judged episode"),
        (None, ["--views", "View3", "View9"], "--views View9: name one or more of View1, View2"),
        (None, ["--views"], "--views"),
        (None, ["--out", "a.mp4"], "name a file that ends in .gif"),
        (None, ["--out", "nowhere/a.gif"], "there is no folder nowhere"),
        (None, ["--fps", "nan"], "--fps up to 30"),
    ],
)
def test_what_no_film_can_be_made_of_is_one_line(
    clip: Clip,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object] | None,
    options: list[str],
    said: str,
) -> None:
    if spoil is not None:
        spoil(run)
    with pytest.raises(SystemExit) as ended:
        clip(*options)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert said in line and line.startswith("make_clip.py: ") and line.count("\n") == 1
