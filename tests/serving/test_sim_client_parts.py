"""The simulation client's parts by themselves: what is seen, what is executed, time, figures."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="pip install '.[gym]'")

import gymnasium
from gymnasium import spaces

from common.program import OptionError, ProgramError
from serving import environments
from serving.body import BodyError
from serving.control_values import Arrival
from serving.environments.mapping import FeatureMap, default_map
from serving.environments.values import EnvironmentOptions, Idle, Simulator
from serving.messages import Chunk, Observation, ServingError
from serving.sim_body import EnvironmentBody
from serving.sim_clock import StretchedClock
from serving.sim_results import Episode, SimReport, wilson
from serving.sim_video import Video, plays
from tests.serving.sim_envs import LineEnv

PIXELS = np.zeros((4, 6, 3), np.uint8)


def nothing() -> None:
    return None


def test_the_usual_map_is_the_contracts() -> None:
    seen = {
        "pixels": {"agentview_image": PIXELS, "robot0_eye_in_hand_image": PIXELS + 1},
        "agent_pos": np.arange(3.0),
    }
    found = FeatureMap.of(default_map(seen))
    view = found.view(seen, nothing)
    assert list(view.pictures) == ["image", "image2"]
    assert (view.pictures["image2"] == 1).all()
    assert view.state.tolist() == [0.0, 1.0, 2.0] and view.sensor is None
    assert found.rename == {}
    view.pictures["image"][:] = 9
    assert (seen["pixels"]["agentview_image"] == 0).all(), "it is a copy"


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (np.zeros(3), {".": "observation.state"}),
        (PIXELS, {".": "observation.image"}),
        ({"pixels": PIXELS, "state": np.zeros(2)},
         {"pixels": "observation.image", "state": "observation.state"}),
        ({"pixels": {"top": PIXELS}, "sensor": np.zeros((5, 2))},
         {"pixels/top": "observation.images.top", "sensor": "observation.sensor"}),
    ],
)  # fmt: skip
def test_a_map_is_told_by_the_first_observation(seen: Any, found: dict[str, str]) -> None:
    assert default_map(seen) == found
    FeatureMap.of(found).view(seen, nothing)


def test_a_map_of_ones_own() -> None:
    features = {
        "hand/place": "observation.state",
        "grip": "observation.state",
        "render": "observation.image",
        "touch": "observation.sensor",
    }
    seen = {"hand": {"place": [1, 2]}, "grip": 3.0, "touch": np.ones((4, 2))}
    view = FeatureMap.of(features).view(seen, lambda: PIXELS + 7)
    assert view.state.tolist() == [1.0, 2.0, 3.0]
    assert (view.pictures["image"] == 7).all()
    assert view.sensor is not None and view.sensor.shape == (4, 2)
    # Policies of one camera know its picture without a name of its own.
    assert FeatureMap.of(features).rename == {"observation.images.image": "observation.image"}


@pytest.mark.parametrize(
    ("features", "seen", "said"),
    [
        ({"a/b": "observation.state"}, {"a": {"c": 1}}, "no 'a/b': at 'b' there are c"),
        ({"a": "observation.state"}, [1], "at 'a' there are no names"),
        ({"a": "observation.state"}, {"a": [math.nan]}, "not finite"),
        ({"a": "observation.state"}, {"a": "text"}, "no row of numbers"),
        ({"a": "observation.state"}, {"a": np.zeros(999)}, "999 values"),
        ({"a": "observation.images.a"}, {"a": np.zeros((4, 6, 3))}, "no picture"),
        ({"a": "observation.images.a"}, {"a": np.zeros((4, 6), np.uint8)}, "no picture"),
        ({"a": "observation.images.a"}, {"a": None}, "no picture"),
        ({"a": "observation.sensor"}, {"a": np.zeros(4)}, "no window"),
        ({"a": "observation.sensor"}, {"a": np.full((2, 2), np.inf)}, "not finite"),
    ],
)
def test_what_is_not_as_the_map_says(features: dict[str, str], seen: Any, said: str) -> None:
    with pytest.raises(BodyError, match=said):
        FeatureMap.of(features).view(seen, nothing)


@pytest.mark.parametrize(
    "features",
    [
        {"a": "observation.nose"},
        {"a": "observation.images.x", "b": "observation.images.x"},
        {"a": "observation.sensor", "b": "observation.sensor"},
        {f"a{k}": f"observation.images.c{k}" for k in range(17)},
    ],
)
def test_maps_that_make_no_sense(features: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="features_map"):
        FeatureMap.of(features)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": 3}, "env.type must be a name"),
        ({"type": "a;b"}, "env.type must be a name"),
        ({"type": "gym", "fps": -1}, "env.fps must be"),
        ({"type": "gym", "fps": math.nan}, "env.fps must be"),
        ({"type": "gym", "episode_length": "long"}, "env.episode_length must be"),
        ({"type": "gym", "idle": "rest"}, "env.idle must be"),
        ({"type": "gym", "features_map": [1]}, "env.features_map must be"),
        ({"type": "gym", "action_names": "x"}, "env.action_names must be"),
        ({"type": "gym"}, "needs --env.task ID"),
        ({"type": "Pendulum-v1", "task": "x"}, "has no tasks"),
        ({"type": "insertion", "task": "x", "views": []}, "no task 'x'"),
        ({"type": "insertion", "fps": 500}, "10 to 100"),
    ],
)
def test_options_of_the_environment_that_cannot_be_used(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        environments.make(given)


def test_what_is_not_an_option_goes_to_the_environment() -> None:
    found = EnvironmentOptions.of({"type": "gym", "task": "X-v0", "gravity": 1, "idle": [0, 1]})
    assert found.own == {"gravity": 1} and found.idle == Idle("noop", (0.0, 1.0))
    made = environments.make({"type": "gym", "task": "Pendulum-v1", "g": 1.5, "fps": 7})
    assert made.env.unwrapped.g == 1.5 and made.fps == 7.0  # type: ignore[attr-defined]
    made.env.close()


def body(idle: Idle, names: tuple[str, ...] = ("x", "y"), **more: Any) -> EnvironmentBody:
    env = LineEnv(**more)
    one = EnvironmentBody(Simulator(env, 20.0, {}, idle, "", names, names))
    one.begin(3, 0)
    return one


def told(one: EnvironmentBody) -> list[float]:
    one.advance()
    return one.read().values.tolist()


def test_what_is_executed_while_nothing_is_queued() -> None:
    held = body(Idle("hold"))
    assert told(held) == [3.0, 0.0]
    held.move(np.array([5.0, 6.0]))
    assert told(held) == [5.0, 6.0]
    assert told(held) == [5.0, 6.0], "a target stays until there is another"
    held.hold()
    assert told(held) == [5.0, 6.0]

    last = body(Idle("last", (1.0, 2.0)))
    assert told(last) == [1.0, 2.0], "before there was any"
    last.move(np.array([5.0, 6.0]))
    told(last)
    last.hold()
    assert told(last) == [5.0, 6.0]

    noop = body(Idle("noop", (1.0, 2.0), keeps=(1,)))
    assert told(noop) == [1.0, 2.0]
    noop.move(np.array([5.0, 6.0]))
    told(noop)
    noop.hold()
    assert told(noop) == [1.0, 6.0]


def test_a_hold_stays_where_it_began() -> None:
    """A simulator that drifts is not followed: else an arm would sink step by step."""
    one = body(Idle("hold"))
    one.hold()
    first = one._idle().copy()
    one._view = type(one._view)(np.array([9.0, 9.0]))  # type: ignore[call-arg]
    assert (one._idle() == first).all()
    one.move(np.zeros(2))
    one.hold()
    assert one._idle().tolist() == [9.0, 9.0]


def test_the_limits_are_the_action_spaces() -> None:
    one = body(Idle(), spread=4.0)
    limiter = one.limiter(20.0)
    target = limiter.next(np.array([90.0, -1.0]), None, np.array([3.0, 0.0]))
    assert target is not None and target.tolist() == [4.0, -1.0]
    one.move(np.array([90.0, -90.0]))
    assert told(one) == [4.0, -4.0]


class Odd(LineEnv):
    """Gives whatever it is told to."""

    answer: Any = None

    def step(self, action: Any) -> Any:
        self.given = action
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, math.nan, False, False, {}


@pytest.mark.parametrize(
    "answer",
    [
        {"pixels": {"agentview_image": PIXELS}, "agent_pos": [1.0, 2.0]},
        {"pixels": {"agentview_image": np.zeros((24, 32, 3), np.uint8)}, "agent_pos": [1.0]},
        {"agent_pos": [1.0, 2.0]},
        None,
    ],
)
def test_an_observation_unlike_the_first_cannot_be_read(answer: Any) -> None:
    one = EnvironmentBody(Simulator(Odd(), 20.0))
    one.begin(0, 0)
    Odd.answer = answer
    brought = one.advance()
    assert (brought.reward, brought.success) == (0.0, None)
    with pytest.raises(BodyError):
        one.read()
    assert one.seen() == {} and one.sensor(1) is None
    Odd.answer = RuntimeError("two\nlines")
    with pytest.raises(BodyError, match="step failed: RuntimeError: two lines"):
        one.advance()


def test_whole_numbers_and_shapes_of_actions() -> None:
    env = Odd()
    env.action_space = spaces.Discrete(4, start=2)  # type: ignore[assignment]
    one = EnvironmentBody(Simulator(env, 20.0))
    one.begin(0, 0)
    one.move(np.array([3.6]))
    Odd.answer = env._observation()
    one.advance()
    assert env.given == 4 and isinstance(env.given, int)
    assert one.action_names == ("action_0",)
    assert one.limiter(20.0).high.tolist() == [5.0]
    env.action_space = spaces.Box(-1, 1, (2, 3), np.float32)
    one = EnvironmentBody(Simulator(env, 20.0))
    one.begin(0, 0)
    one.move(np.arange(6) / 10)
    one.advance()
    assert env.given.shape == (2, 3) and env.given.dtype == np.float32
    env.action_space = spaces.MultiBinary(3)  # type: ignore[assignment]
    with pytest.raises(OptionError, match="Box and Discrete"):
        EnvironmentBody(Simulator(env, 20.0))


def test_a_stretched_clock_keeps_answers_as_late_as_they_were() -> None:
    clock, stop = StretchedClock(50.0), threading.Event()
    ticks = clock.ticks(stop)
    first = next(ticks).now
    seen = Observation(0, 123.0, True, np.zeros(1, np.float32))
    clock.sent(seen, first)
    sent_at = time.monotonic()
    chunk = Chunk(0, 123.0, np.zeros((2, 1), np.float32))
    # It came 0.05 s later by the wall clock: two and a half periods, however long a step takes.
    came = Arrival(chunk, sent_at + 0.05)
    stop.wait(0.2)  # a step of the simulation that takes ten periods
    got, nows = [], []
    waiting = [came]
    for _ in range(5):
        nows.append(next(ticks).now)
        got.append(clock.arrived(waiting, nows[-1]))
        waiting = []
    assert np.diff([first, *nows]) == pytest.approx([0.02] * 5)
    when = next(k for k, found in enumerate(got) if found)
    assert nows[when] - first >= 0.05 - 1e-9 and nows[when - 1] - first < 0.051
    assert got[when][0].at - first == pytest.approx(0.05, abs=0.01)
    # A refusal says nothing of what it is about.
    refusal = Arrival(ServingError("failed", "no"), time.monotonic())
    assert len(clock.arrived([refusal], nows[-1])) == 1
    stop.set()
    assert next(ticks, None) is None


def test_wilsons_interval() -> None:
    # Known values: Newcombe 1998, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def episode(number: int, success: bool | None, task: str = "t", **more: Any) -> Episode:
    return Episode(number, number, task, success, 1.0 + number, 10, 2.0, 1.0, **more)


def test_the_report() -> None:
    held = {"no_action": 2, "server": 1, "limits": 4}
    report = SimReport([episode(0, True, held=held), episode(1, False, "u")], 10.0, "wall")
    told = json.loads(json.dumps(report.as_dict()))
    assert told["success_rate"] == 0.5 and told["mean_reward"] == 1.5
    assert told["empty_share"] == 0.15, "a hold by the limits is no empty queue"
    assert told["episodes"][0]["empty_share"] == 0.3
    assert told["control_hz"] == 5.0 and told["mean_steps"] == 10.0
    assert told["by_task"]["u"]["successes"] == 0 and told["by_task"]["t"]["successes"] == 1
    for part in ("50.0% (1 of 2", "5.0 Hz of 10 Hz", "15.0% of the steps", "1.500 mean"):
        assert part in report.table()


def test_why_an_episode_is_no_success_is_shown() -> None:
    one = episode(0, False, ended="truncated", reason="distance")
    assert "truncated (distance)" in one.line(1, 10.0)
    report = SimReport([one], 10.0, "wall")
    assert "truncated (distance)" in report.table()
    assert report.as_dict()["episodes"][0]["reason"] == "distance"


def test_a_report_without_episodes_or_success() -> None:
    assert SimReport([], 10.0, "wall").as_dict()["success_rate"] is None
    assert "no episode" in SimReport([], 10.0, "wall").table()
    unknown = SimReport([episode(0, None)], 10.0, "lockstep")
    assert unknown.success_rate is None and "not known" in unknown.table()


def test_a_video_plays(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "deep" / "film.mp4"
    film = Video(path, 10.0)
    for number in range(12):
        picture = np.full((33, 47, 3), 20 * number, np.uint8)
        picture[..., 2] = 0  # red and green: the order of colours shows
        film.add(picture, f"frame {number}", number == 3)
    assert film.close() == str(path) and plays(path) == 12
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(12)]
    capture.release()
    assert min(frames[0].shape[:2]) >= 384
    blue, green, red = frames[10][200, 200].astype(int)
    assert blue < 60 and abs(green - 200) < 25 and abs(red - 200) < 25


def test_videos_that_cannot_be(tmp_path: Path) -> None:
    film = Video(tmp_path / "none.mp4", 10.0)
    film.add(None, "", False)
    assert film.close() == "" and not (tmp_path / "none.mp4").exists()
    (tmp_path / "file").write_text("")
    film = Video(tmp_path / "file" / "film.mp4", 10.0)
    for _ in range(200):
        film.add(np.zeros((64, 64, 3), np.uint8), "", False)
    with pytest.raises(ProgramError, match="cannot be written"):
        film.close()


@pytest.mark.parametrize(
    "env",
    [{"type": "dualrate/Insertion-v0"}, {"type": "gym", "task": "dualrate/Insertion-v0"}],
    ids=["id", "gym"],
)
def test_the_rig_by_its_gymnasium_id_is_the_rig_that_is_known(env: dict[str, Any]) -> None:
    from sim.environment import ENVIRONMENT_ID

    assert ENVIRONMENT_ID == "dualrate/Insertion-v0"
    made = environments.make({**env, "views": ["View3"]})
    named = environments.make({"type": "insertion", "views": ["View3"]})
    for one in (made, named):
        one.env.close()
    assert (made.fps, made.features, made.idle) == (named.fps, named.features, named.idle)
    assert made.state_names == made.action_names == named.state_names != ()
    assert made.features["pixels/View3"] == "observation.images.View3"
    assert made.features["sensor"] == "observation.sensor"


def test_the_rigs_window_and_joints_are_what_the_policy_gets() -> None:
    made = environments.make({"type": "insertion", "views": []})
    one = EnvironmentBody(made)
    one.begin(0, 0)
    one.at(5.0)
    assert one.state_names == one.action_names == tuple(f"joint_{k}.pos" for k in range(1, 7))
    window = one.sensor(65)
    assert window is not None and window.shape == (65, 1026)
    assert one.sensor(66) is None and one.sensor(10).shape == (10, 1026)  # type: ignore[union-attr]
    assert one.read().at == 5.0 and one.task == "Perform needle insertion into the eye"
    stood = one.read().values
    for _ in range(3):
        one.advance()
    assert one.read().values == pytest.approx(stood, abs=0.01), "it holds"
    one.close()


def test_pictures_are_shown_as_a_grid() -> None:
    env = LineEnv()
    env._observation = lambda: {  # type: ignore[method-assign]
        "pixels": {str(k): np.full((4 + k, 6, 3), k, np.uint8) for k in range(5)}
    }
    one = EnvironmentBody(Simulator(env, 20.0))
    one.begin(0, 0)
    shown = one.picture()
    assert shown is not None and shown.shape == (16, 18, 3)
    assert shown[8, 6, 0] == 4 and isinstance(env, gymnasium.Env)
