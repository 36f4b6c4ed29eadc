"""`--split`: features from the server, the fast half at the robot."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.wire import RobotState
from policies.base import ActionChunk, PolicyError, PolicySpec
from serving.aggregation import choose
from serving.body import BodyState
from serving.control_loop import ControlLoop
from serving.control_values import LoopOptions
from serving.messages import Chunk, FeatureReply, Instructions, Observation, ServingError
from serving.robot_values import StatePlaces, check_space, joint_targets
from serving.split import FastHalfHere, Planned
from tests.serving.test_control_loop import FPS, FakeBody, World
from tests.support import Child, free_ports

JOINTS = tuple(f"joint_{k}.pos" for k in range(1, 7))
SPEC = PolicySpec(
    name="fast",
    views=("front", "side"),
    image_size=(0, 0),
    sensor_window=0,
    sensor_channels=0,
    rows=4,
    columns=(*JOINTS, "gripper"),
    space="joint_delta",
    dt=1 / FPS,
    task="insert",
    identity="one",
)


class Fast:
    """Moves every joint by what the features say, a row."""

    spec = SPEC
    fails = False

    def unpack(self, data: bytes) -> float:
        try:
            return float(data)
        except ValueError:
            raise PolicyError("not features of a policy") from None

    def act(
        self,
        features: float,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        if self.fails:
            raise PolicyError("no sensor window")
        rows = np.full((4, 7), features, np.float32)
        return ActionChunk(rows, rows)


class Six(FakeBody):
    """Six joints."""

    def limiter(self, control_hz: float) -> object:  # type: ignore[override]
        limits = super().limiter(control_hz)
        wide = {
            name: np.resize(getattr(limits, name), 6)
            for name in ("low", "high", "step", "lead", "turns")
        }
        return replace(limits, **wide)


def split_world(policy: Fast | None = None, max_age_s: float = 1.0) -> World:
    body = Six(position=np.zeros(6), state_names=JOINTS, action_names=JOINTS)
    instructions = Instructions("qwen_vla", "here", state_names=JOINTS, cameras=body.cameras)
    options = LoopOptions(fps=FPS, actions_per_chunk=8, aggregation=choose("latest_only"))
    world = World(body, options, features)
    here = FastHalfHere(policy or Fast(), instructions, max_age_s)
    world.loop = ControlLoop(body, options, here)
    return world


def features(observation: Observation) -> FeatureReply:
    assert observation.wants == "features"
    assert observation.must_go
    return FeatureReply(observation.timestep, observation.timestamp, b"0.5", identity="one")


def test_it_acts_at_every_tick_and_asks_for_features_one_at_a_time() -> None:
    world = split_world()
    world.tick(20)
    assert world.held[0] == "features"  # nothing came yet
    moving = world.held[1:]
    assert moving == [None] * len(moving)
    # Half a degree a tick, from where the arm is: the change is to the measured state.
    np.testing.assert_allclose(world.body.position, 0.5 * len(moving))
    assert 8 <= len(world.sent) <= 20
    assert world.loop.counters.chunks >= 8


SPEED = 2.0  # a second


class Follows(Fast):
    """Wants all joints to be at SPEED times the time of day, whatever the ticks."""

    def __init__(self, dt: float) -> None:
        self.spec = replace(SPEC, dt=dt, rows=16, space="joint_position")

    def act(self, features, sensor, robot, previous) -> ActionChunk:  # type: ignore[no-untyped-def]
        due = robot.origin_timestamp - 100.0 + self.spec.dt * np.arange(1, 17)
        rows = np.repeat(SPEED * due[:, None], 7, axis=1).astype(np.float32)
        return ActionChunk(rows, rows)


class Lags(Six):
    """Is half a tick's way behind where it is sent."""

    def move(self, target: np.ndarray) -> None:
        self.moves.append((self.now, target))
        self.position = self.position + 0.5 * (target - self.position)


@pytest.mark.parametrize("ticks", [0.3, 1.0, 2.5, 4.0])
def test_rows_are_followed_in_time_whatever_the_control_rate(ticks: float) -> None:
    """An arm 10 times a second, a policy whose rows are so many ticks apart."""
    body = Lags(position=np.zeros(6), state_names=JOINTS, action_names=JOINTS)
    instructions = Instructions("qwen_vla", "here", state_names=JOINTS, cameras=body.cameras)
    options = LoopOptions(fps=FPS, actions_per_chunk=16, aggregation=choose("latest_only"))
    world = World(body, options, features)
    world.loop = ControlLoop(body, options, FastHalfHere(Follows(ticks / FPS), instructions, 1.0))
    world.tick(60)
    assert world.held[5:] == [None] * 55
    for at, target in body.moves[-20:]:
        # Where it should be at the end of the tick, neither ahead of it nor behind.
        assert target == pytest.approx([SPEED * (at + 1 / FPS - 100.0)] * 6, abs=0.02)


def test_without_the_server_it_carries_on_until_the_features_are_too_old() -> None:
    world = split_world(max_age_s=1.0)
    world.tick(10)
    moved = world.loop.counters.moves
    world.session = None
    world.tick(30)
    after = world.loop.counters.moves - moved
    assert 7 <= after <= 11  # a second at 10 Hz, less the age that they had
    assert world.held[-1] == "features"
    sent = len(world.sent)
    world.session = 2
    world.tick(4)
    assert len(world.sent) > sent
    assert world.held[-1] is None


def test_a_silent_camera_means_no_new_features_and_then_a_hold() -> None:
    world = split_world(max_age_s=2.0)
    world.tick(10)
    world.body.silent_since = {"front": world.now}
    world.tick(11)
    assert world.held[-1] is None
    sent = len(world.sent)
    world.tick(30)
    assert world.held[-1] == "features"
    assert len(world.sent) == sent


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            lambda o: FeatureReply(o.timestep, o.timestamp, b"0.5", identity="two"),
            "of another checkpoint",
        ),
        (
            lambda o: FeatureReply(o.timestep, o.timestamp, b"junk", identity="one"),
            "not features",
        ),
        (lambda o: ServingError("failed", "out of memory"), "out of memory"),
        (
            lambda o: FeatureReply(o.timestep, o.timestamp, b"inf", identity="one"),
            "the actions are not finite",
        ),
    ],
)
def test_what_cannot_be_used_is_said_and_it_holds(
    reply: Callable[[Observation], FeatureReply | ServingError],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = split_world()
    world.answer = reply
    world.tick(30)
    assert set(world.held) == {"features"}
    assert said in caplog.text


def test_a_fast_half_that_fails_holds_at_once() -> None:
    policy = Fast()
    world = split_world(policy)
    world.tick(10)
    assert world.held[-1] is None
    policy.fails = True
    world.tick()
    assert world.held[-1] == "features"
    assert len(world.loop.queue) == 0
    policy.fails = False
    world.tick()
    assert world.held[-1] is None


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), ValueError("a shape")])
def test_a_model_that_trips_over_features_holds_and_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Trips(Fast):
        def act(self, features: float, *rest: object) -> ActionChunk:  # type: ignore[override]
            if self.fails:
                raise error
            return super().act(features, *rest)  # type: ignore[arg-type]

    policy = Trips()
    world = split_world(policy)
    world.tick(10)
    policy.fails = True
    assert world.tick(2).hold == "features"
    assert len(world.loop.queue) == 0
    assert f"the fast half failed: {type(error).__name__}" in caplog.text
    policy.fails = False
    assert world.tick().hold is None


def test_features_of_an_unknown_checkpoint_are_not_those_of_another() -> None:
    policy = Fast()
    policy.spec = replace(SPEC, identity="")
    world = split_world(policy)
    world.answer = lambda o: FeatureReply(o.timestep, o.timestamp, b"0.5")
    world.tick(10)
    assert set(world.held) == {"features"}


def test_chunks_are_ignored_where_features_were_asked_for() -> None:
    world = split_world()
    world.answer = lambda o: Chunk(o.timestep, o.timestamp, np.ones((4, 6), np.float32))
    world.tick(10)
    assert set(world.held) == {"features"}
    assert world.loop.counters.ignored > 0


def test_deltas_add_up_from_where_the_arm_is() -> None:
    robot = RobotState(0.0, 0.0, 0.0, (10.0,) * 6, (0.0,) * 6)
    rows = np.ones((3, 7), np.float32)
    targets = joint_targets(rows, "joint_delta", robot, 7)
    np.testing.assert_array_equal(targets[:, 0], [11.0, 12.0, 13.0])
    np.testing.assert_array_equal(targets[:, 6], 1.0)  # the gripper's is no change
    np.testing.assert_array_equal(joint_targets(rows, "joint_position", None, 6), rows[:, :6])
    with pytest.raises(ServingError, match="no robot state"):
        joint_targets(rows, "joint_delta", None, 6)


def test_values_are_told_by_their_names() -> None:
    six = StatePlaces.of((*JOINTS, "gripper.pos", "pose.x", "force"))
    assert (six.joints, six.gripper, six.force, six.pose) == ((0, 1, 2, 3, 4, 5), 6, 8, None)
    assert six.action_names(7) == (*JOINTS, "gripper.pos")
    assert six.action_names(6) == JOINTS
    so101 = StatePlaces.of(("pan.pos", "lift.pos", "flex.pos", "wrist.pos", "roll.pos", "gripper"))
    assert so101.joints == (0, 1, 2, 3, 4, 5)
    assert StatePlaces.of(("x", "y")).action_names(6) == ()
    with pytest.raises(ServingError, match="moves the tool"):
        check_space("pose_delta", six)
    with pytest.raises(ServingError, match="has not six: x, y"):
        check_space("joint_delta", StatePlaces.of(("x", "y")))


def test_both_sides_of_a_real_policy_agree(tiny_checkpoint: Path) -> None:
    """The split's actions are those that the server gives for the same pictures and touch."""
    from serving.engine_options import EngineOptions
    from serving.messages import Picture
    from serving.policies.dual_rate import load
    from serving.served import Request
    from serving.split import load_here

    path = str(tiny_checkpoint)
    views = {f"View{k}": (72, 128, 3) for k in range(1, 6)}
    told = Instructions("qwen_vla", path, state_names=JOINTS, cameras=views)
    served = load(told, EngineOptions())
    here = load_here(told, path, "cpu", 1e9)
    chance = np.random.default_rng(5)
    pictures = {
        view: Picture(pixels=chance.integers(0, 255, shape, np.uint8))
        for view, shape in views.items()
    }
    joints = chance.normal(size=6).astype(np.float32)
    window = chance.normal(size=(65, 1026)).astype(np.float32)
    seen = Observation(3, 100.0, True, joints, pictures, "insert", wants="features")
    memory = served.admit(told)
    (answer,) = served.predict([Request(seen, memory, time.monotonic())])
    assert not isinstance(answer, Exception) and answer.features is not None
    assert here.take(FeatureReply(3, 100.0, answer.features, identity=answer.identity), 0.0) == ""
    felt = Observation(4, 100.1, False, joints, sensor=window)
    (whole,) = served.predict([Request(felt, memory, time.monotonic())])
    assert not isinstance(whole, Exception)
    planned = here.plan(4, BodyState(joints.astype(np.float64), 0.0), lambda n: window[-n:], 0.0)
    assert isinstance(planned, Planned), planned
    assert planned.chunk.names == whole.names == JOINTS
    np.testing.assert_allclose(planned.chunk.actions, whole.actions, atol=1e-5)
    # The policy does look at the sensor: with another window the actions are others.
    other = here.plan(5, BodyState(joints.astype(np.float64), 0.0), lambda n: -window[-n:], 0.0)
    assert isinstance(other, Planned)
    assert np.abs(other.chunk.actions - planned.chunk.actions).max() > 1e-4


CAMERA = "{type: synthetic, width: 160, height: 90}"


def test_the_programs_carry_on_without_the_server(
    tiny_checkpoint: Path, program: Callable[..., Child], tmp_path: Path
) -> None:
    (grpc, zmq) = free_ports(2)
    path = str(tiny_checkpoint)

    def serve() -> Child:
        server = program(
            "serving/policy_server.py", "--port", str(grpc), "--zmq_port", str(zmq),
            "--inference_latency", "0", "--preload", f"qwen_vla:{path}",
        )  # fmt: skip
        server.wait_for("ready", 120)
        return server

    server = serve()
    client = program(
        "serving/robot_client.py", "--split", "True", "--policy_type", "qwen_vla",
        "--server_address", f"tcp://127.0.0.1:{zmq}", "--pretrained_name_or_path", path,
        "--features_max_age", "3", "--fps", "10", "--summary", str(tmp_path / "summary.json"),
        "--robot.type", "synthetic", "--robot.sensor", "{type: synthetic}",
        "--robot.cameras", "{" + ", ".join(f"View{k}: {CAMERA}" for k in range(1, 6)) + "}",
    )  # fmt: skip
    client.wait_for("moving, was on hold", 120)
    server.kill()
    # Steps go on while it is lost, until the features are too old.
    client.wait_for("lost", 30)
    _, line = client.wait_for(r"hold: .*features are .* s old", 30)
    assert re.search(r"features are 3\.\d+ s old", line)
    after = len(client.lines)
    serve()
    client.wait_for("moving, was on hold", 60, after=after)
    assert client.stop() == 0, client.text
    assert "2 sessions" in client.text


def test_split_is_for_policies_with_two_halves(program: Callable[..., Child]) -> None:
    client = program("serving/robot_client.py", "--split", "True", "--policy_type", "act")
    assert client.end() == 2
    assert "--split is for policies with two halves (qwen_vla), not act" in client.text
