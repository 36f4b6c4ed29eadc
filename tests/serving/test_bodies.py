"""What a client moves: the simulated arm, and the project's own drivers with their threads."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.clock import wall
from common.kinematics import MECA500
from senders.drivers import DriverError, Frame, RobotFault, SampleBlock
from senders.limits import MotionLimits
from senders.robots.synthetic import HOME_DEG, SyntheticRobot
from serving.bodies import make
from serving.bodies.cameras import Cameras, DriverSource
from serving.bodies.driver import ArmBody
from serving.bodies.sensor import SensorWatch
from serving.bodies.simulated import SimulatedBody
from serving.body import Body, BodyError, BodyFault
from tests.support import wait_until


@pytest.fixture
def body() -> Iterator[Callable[..., Body]]:
    """`body(key=value)`: made, opened, and closed at the end."""
    opened: list[Body] = []

    def begin(**options: Any) -> Body:
        opened.append(make(options))
        opened[-1].open()
        return opened[-1]

    yield begin
    for one in opened:
        one.close()
        one.close()


def simulated(**options: Any) -> SimulatedBody:
    made = make({"type": "simulated", **options})
    assert isinstance(made, SimulatedBody)
    return made


# --- by name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no robot is given: --robot.type is one of simulated .*synthetic.*so101_follower"),
        ({"type": "replay"}, "plays a recording and cannot be moved"),
        ({"type": "simulated", "colour": 1}, "robot: no option 'colour'; there are .*joints"),
        ({"type": "simulated", "joints": 0}, "--robot.joints must be from 1 to 256, not 0"),
        ({"type": "simulated", "joints": 2, "start": [1.0]}, "a list of 2, or a map"),
        ({"type": "simulated", "joint_min": {"elbow": 1}}, "no 'elbow'; there are joint_1.pos"),
        ({"type": "simulated", "joint_min": 10, "joint_max": 5}, "must be below joint_max"),
        ({"type": "simulated", "joint_speed": ".nan"}, "--robot.joint_speed must be a number"),
        ({"type": "simulated", "speed_scale": 2}, "--robot.speed_scale must be from 0.001 to 1"),
        ({"type": "simulated", "cameras": {"a": {"type": "opencv"}}}, "a takes width, height"),
        ({"type": "simulated", "cameras": 99}, "--robot.cameras must be up to 16"),
        ({"type": "synthetic", "sway": 3}, "--robot.robot: driver synthetic does not take"),
        ({"type": "synthetic", "extra_state": ["x"]}, "list of pose, force"),
        ({"type": "synthetic", "cameras": {"a": {"type": "x"}}}, "cameras.a: there is no driver"),
        ({"type": "synthetic", "cameras": {"a": {}}}, "there is no driver ''"),
        ({"type": "synthetic", "cameras": {"a": 1}}, "must be a map of up to 16 names to {type"),
        ({"type": "synthetic", "sensor": {"type": "x"}}, "sensor: there is no driver"),
        (
            {"type": "synthetic", "cameras": {"a": {"type": "opencv", "index_or_path": "/none"}}},
            "cameras.a: .*no such device, URL or file",
        ),
    ],
)
def test_what_cannot_be_made_ends_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BodyError, match=message) as caught:
        make(options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is not None or "lerobot" in sys.modules,
    reason="LeRobot is here",
)
def test_a_robot_of_lerobot_without_lerobot_says_how_to_get_it() -> None:
    with pytest.raises(BodyError, match=r"pip install '.\[lerobot\]' with Python 3.12"):
        make({"type": "so101_follower", "port": "/dev/none"})


def test_options_may_be_text_numbers_or_a_map_of_the_driver() -> None:
    for options in ({"sway_deg": 2}, {"driver_options": {"sway_deg": 2}}):
        made = make({"type": "synthetic", **options})
        assert isinstance(made, ArmBody)
        assert made._driver._sway_deg == 2.0  # type: ignore[attr-defined]


# --- the simulated arm


def test_the_simulated_arm_follows_at_its_speed_and_holds(body: Callable[..., Body]) -> None:
    arm = body(type="simulated", joints=2, start=[0, 10], joint_speed=[50, 200])
    assert arm.state_names == arm.action_names == ("joint_1.pos", "joint_2.pos")
    assert arm.read().values.tolist() == [0.0, 10.0]
    begun = time.monotonic()
    arm.move(np.array([1000.0, 12.0]))
    wait_until(lambda: arm.read().values[0] > 5.0, "joint 1 under way")
    state = arm.read()
    assert state.values[0] <= 50.0 * (state.at - begun) + 1e-9
    wait_until(lambda: arm.read().values[1] == 12.0, "joint 2 at its target")
    arm.hold()
    held = arm.read().values
    threading.Event().wait(0.05)
    assert arm.read().values.tolist() == held.tolist()


def test_an_so101_in_name_and_range() -> None:
    arm = simulated(arm="so101")
    assert arm.state_names[0] == "shoulder_pan.pos"
    limits = arm.limiter(30.0)
    assert (limits.low.tolist(), limits.high.tolist()) == ([-100.0] * 5 + [0.0], [100.0] * 6)
    assert limits.step.tolist() == [2.0] * 6  # 0.5 of 120 units a second, thirty times a second


def test_limits_scale_with_speed_rate_and_step() -> None:
    arm = simulated(joints=2, joint_min={"joint_1": -5}, joint_speed=[40, 400], max_step=3)
    limits = arm.limiter(100.0)
    assert limits.low.tolist() == [-5.0, -180.0]
    assert limits.step == pytest.approx([0.2, 2.0])
    assert arm.limiter(10.0).step == pytest.approx([2.0, 3.0])
    assert limits.lead == pytest.approx([5.0, 50.0])


def test_commands_are_written_down_and_go_on_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "commands.csv"
    path.write_text("of another run")
    arm = simulated(joints=2, record=str(path))
    limits, commanded = arm.limiter(50.0), None
    for goal in (40.0, -40.0):
        arm.open()
        commanded = None
        for _ in range(10):
            state = arm.read()
            commanded = limits.next(np.full(2, goal), commanded, state.values)
            assert commanded is not None
            arm.move(commanded)
        arm.hold()
        arm.close()
    rows = list(csv.DictReader(path.open()))
    assert [row["command"] for row in rows] == (["move"] * 10 + ["hold"]) * 2
    assert len(arm.commands) == 22
    for row, command in zip(rows, arm.commands, strict=True):
        assert float(row["monotonic_s"]) == pytest.approx(command.at, abs=1e-5)
        assert float(row["target joint_2.pos"]) == pytest.approx(command.target[1])
        assert float(row["measured joint_1.pos"]) == pytest.approx(command.measured[0])
        assert row["command"] == ("hold" if command.is_hold else "move")
    moves = [c for c in arm.commands if not c.is_hold]
    steps = [b.target - a.target for a, b in itertools.pairwise(moves[:10])]
    assert np.abs(steps).max() <= limits.step[0] + 1e-9


def test_a_record_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    arm = simulated(record=str(tmp_path / "none" / "x.csv"))
    with pytest.raises(BodyError, match=r"--robot.record .*No such file"):
        arm.open()


def test_simulated_pictures_are_new_at_their_rate_and_lie_still(body: Callable[..., Body]) -> None:
    cameras = {"front": {}, "wrist": {"width": 64, "height": 48, "fps": 200}}
    arm = body(type="simulated", cameras=cameras, width=160, height=120, fps=0.1)
    assert arm.cameras == {"front": (120, 160, 3), "wrist": (48, 64, 3)}
    first = arm.seen()
    kept = first["wrist"].pixels.copy()
    assert first["front"].pixels.shape == (120, 160, 3)
    assert not first["front"].pixels.flags.writeable
    wait_until(lambda: arm.seen()["wrist"].at > first["wrist"].at, "a newer picture")
    second = arm.seen()
    assert second["front"] is first["front"], "no new picture was due"
    assert (second["wrist"].pixels != kept).any()
    assert (first["wrist"].pixels == kept).all(), "a picture that was given away was drawn over"
    assert abs(second["wrist"].at - time.monotonic()) < 5.0
    arm.move(np.full(6, 60.0))
    wait_until(lambda: arm.read().values[0] > 20.0, "the arm under way")
    moved = arm.seen()["wrist"].pixels
    assert (np.argmax(moved[20] == 220) != np.argmax(kept[20] == 220)).any()


def test_a_simulated_camera_stops_and_comes_back(body: Callable[..., Body]) -> None:
    arm = body(
        type="simulated",
        cameras=2,
        width=32,
        height=32,
        fps=100.0,
        stopping_camera="camera2",
        camera_stops_after_s=0.1,
        camera_stops_for_s=0.5,
    )
    wait_until(lambda: arm.seen()["camera1"].at - arm.seen()["camera2"].at > 0.1, "the fault")
    wait_until(lambda: time.monotonic() - arm.seen()["camera2"].at < 0.1, "the camera again")


def test_the_simulated_arm_fails_and_answers_again(body: Callable[..., Body]) -> None:
    arm = body(type="simulated", body_fails_at_s=0.05, body_fails_for_s=0.3)

    def fails(call: Callable[[], object]) -> bool:
        try:
            call()
        except BodyError as error:
            return "body_fails_at_s" in str(error)
        return False

    wait_until(lambda: fails(arm.read), "the fault")
    arm.close()
    wait_until(lambda: not fails(arm.open), "the arm again")
    assert arm.read().values.shape == (6,)


def test_the_simulated_arm_refuses_bad_targets_and_a_closed_one_everything() -> None:
    arm = simulated()
    arm.hold()
    assert arm.seen() == {}
    with pytest.raises(BodyError, match="not open"):
        arm.read()
    arm.open()
    for bad in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(BodyError, match="not a target"):
            arm.move(bad)
    arm.close()
    assert arm.commands == ()


def test_a_simulated_sensor_gives_whole_windows(body: Callable[..., Body]) -> None:
    arm = body(type="simulated", sensor_channels=9, sensor_rate_hz=2000)
    assert arm.sensor(2_000_000) is None
    wait_until(lambda: arm.sensor(40) is not None, "forty samples")
    rows = arm.sensor(40)
    assert rows is not None
    assert (rows.shape, rows.dtype) == ((40, 9), np.float32)
    assert np.isfinite(rows).all()
    assert np.abs(rows[:, 0] - 0.25).max() <= 0.2 + 1e-6
    assert simulated().sensor(1) is None


# --- the project's drivers


def test_a_synthetic_robot_with_cameras_and_a_sensor(body: Callable[..., Body]) -> None:
    arm = body(
        type="synthetic",
        cameras={
            "front": {"type": "synthetic", "width": 64, "height": 48, "fps": 60},
            "wrist": {"type": "synthetic", "width": 32, "height": 24, "fps": 60},
        },
        sensor={"type": "synthetic", "rate_hz": 2000, "aline_length": 7},
        extra_state=["pose", "force"],
    )
    joints = tuple(f"joint_{k}.pos" for k in range(1, 7))
    assert arm.action_names == joints
    assert arm.state_names[:6] == joints
    assert make({"type": "synthetic"}).cameras == {}
    assert arm.state_names[6] == "pose.x"
    assert len(arm.state_names) == 13
    assert arm.cameras == {"front": (48, 64, 3), "wrist": (24, 32, 3)}
    state = arm.read()
    assert state.values[:6].tolist() == list(HOME_DEG)
    assert 0.0 <= time.monotonic() - state.at < 5.0
    target = np.array(HOME_DEG) + 3.0
    arm.move(target)
    wait_until(lambda: np.allclose(arm.read().values[:6], target), "the target")
    first = arm.seen()["front"]
    assert first.pixels.dtype == np.uint8
    assert not first.pixels.flags.writeable
    wait_until(lambda: arm.seen()["front"].at > first.at, "a newer picture")
    wait_until(lambda: arm.sensor(200) is not None, "200 samples")
    rows = arm.sensor(200)
    assert rows is not None
    assert (rows.shape, rows.dtype) == ((200, 8), np.float32)
    assert 0.04 < float(rows[:, 0].min()) <= float(rows[:, 0].max()) < 0.46
    with pytest.raises(BodyError, match=r"--robot.sensor_samples 5000"):
        arm.sensor(5000)
    arm.close()
    assert arm.seen() == {}
    arm.hold()
    with pytest.raises(BodyError, match="not open"):
        arm.read()
    arm.open()
    assert arm.read().values[:6] == pytest.approx(target)
    assert set(arm.seen()) == {"front", "wrist"}


def test_a_drivers_limits_are_the_arms_at_a_part_of_their_speed() -> None:
    made = make({"type": "synthetic", "speed_scale": 0.1, "max_step": 1.0})
    limits = made.limiter(100.0)
    assert limits.low.tolist() == list(MECA500.joint_min_deg)
    assert limits.step == pytest.approx(
        np.minimum(0.1 * np.array(MECA500.joint_speed_deg_s) / 100.0, 1.0)
    )


def test_a_film_is_a_camera_whose_colours_are_the_right_way_round(
    tmp_path: Path, body: Callable[..., Body]
) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (64, 48))
    for _ in range(10):
        writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # red, as OpenCV counts
    writer.release()
    camera = {"type": "opencv", "index_or_path": str(film), "loop": True}
    with pytest.raises(BodyError, match=r"front gives pictures of 64x48: .*width: 64, height: 48"):
        body(type="synthetic", cameras={"front": camera})
    camera |= {"width": 64, "height": 48}
    arm = body(type="synthetic", cameras={"front": camera})
    red = arm.seen()["front"].pixels.reshape(-1, 3).mean(axis=0)
    assert red[0] > 200
    assert red[1:].max() < 60


class Camera:
    """A camera driver that does as the test says."""

    name = "test"

    def __init__(self) -> None:
        self.gives: Frame | Exception | None = None
        self.opened = self.closed = 0
        self.refuses = False
        self.given = threading.Event()

    def open(self) -> None:
        self.opened += 1
        if self.refuses:
            raise DriverError("no such\ncamera")

    def read(self, timeout_s: float) -> Frame | None:
        threading.Event().wait(0.005)
        gives = self.gives
        if isinstance(gives, Exception):
            raise gives
        if isinstance(gives, Frame):
            return Frame(wall(), gives.image, gives.jpeg)
        return None

    def close(self) -> None:
        self.closed += 1


GREY = np.full((24, 32, 3), 90, np.uint8)


def arm_body(camera: Camera, timeout_s: float = 20.0, driver: Any = None) -> ArmBody:
    names = tuple(f"joint_{k}" for k in range(1, 7))
    cameras = Cameras({"front": DriverSource(camera)}, {"front": (24, 32, 3)})
    robot = driver or SyntheticRobot()
    return ArmBody(robot, names, MotionLimits.of_arm(), cameras, open_timeout_s=timeout_s)


def test_a_camera_that_gives_nothing_keeps_the_robot_closed() -> None:
    camera = Camera()
    arm = arm_body(camera, 0.1)
    with pytest.raises(BodyError, match=r"no picture within 0.1 s from camera front \(no picture"):
        arm.open()
    with pytest.raises(BodyError, match="not open"):
        arm.read()
    camera.refuses = True
    with pytest.raises(BodyError, match=r"from camera front \(no such camera\)"):
        arm.open()
    wait_until(lambda: camera.closed == camera.opened, "the camera closed")


@pytest.mark.parametrize(
    "fault",
    [
        DriverError("unplugged"),
        ValueError("a vendor's own"),
        Frame(0.0),
        Frame(0.0, image=np.zeros((24, 32), np.uint8)),
        Frame(0.0, image=np.zeros((12, 32, 3), np.uint8)),
        Frame(0.0, image=np.zeros((24, 32, 3), np.float32)),  # type: ignore[arg-type]
    ],
)
def test_a_camera_that_fails_keeps_its_last_picture_and_is_opened_again(fault: Any) -> None:
    camera = Camera()
    camera.gives = Frame(0.0, image=GREY)
    arm = arm_body(camera)
    arm.open()
    camera.gives = fault
    wait_until(lambda: camera.opened > 1, "the camera opened again")
    last = arm.seen()["front"]
    assert last.pixels.shape == (24, 32, 3)
    assert arm.read().values.shape == (6,), "the robot is read all the same"
    camera.gives = Frame(0.0, image=GREY)
    wait_until(lambda: arm.seen()["front"].at > last.at, "pictures again")
    arm.close()
    assert camera.closed >= camera.opened


def test_jpegs_are_decoded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    blue = np.zeros((24, 32, 3), np.uint8)
    blue[..., 0] = 250
    jpeg = cv2.imencode(".jpg", blue)[1].tobytes()
    decoded: list[int] = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: decoded.append(1) or real(*a))
    camera = Camera()
    camera.gives = Frame(0.0, jpeg=jpeg)
    arm = arm_body(camera)
    arm.open()
    first = arm.seen()["front"]
    wait_until(lambda: arm.seen()["front"].at > first.at, "more pictures")
    assert decoded == []
    assert first.pixels[..., 2].mean() > 200
    assert first.pixels[..., :2].mean() < 60
    assert first.pixels is first.pixels
    assert decoded == [1]
    # Whole by its markers, and yet no picture: the camera is not to blame, whoever looks is told.
    at = jpeg.index(b"\xff\xdb")
    camera.gives = Frame(0.0, jpeg=jpeg[:at] + b"\xff\xfe" + jpeg[at + 2 :])

    def says_so() -> bool:
        try:
            return not arm.seen()["front"].pixels.size
        except BodyError as error:
            return "broken JPEG" in str(error)

    wait_until(says_so, "the broken one")
    assert camera.opened == 1
    camera.gives = Frame(0.0, jpeg=jpeg[: len(jpeg) // 2])
    wait_until(lambda: camera.opened > 1, "the camera opened again after half a picture")
    arm.close()


class Robot(SyntheticRobot):
    """A synthetic robot that notes what it is asked, and fails where told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.fault: dict[str, Exception] = {}

    def open(self) -> None:
        self._note("open")
        super().open()

    def hold(self) -> None:
        self._note("hold")
        super().hold()

    def close(self) -> None:
        self._note("close")
        super().close()

    def move_joints(self, joints_deg: np.ndarray) -> None:
        self._note("move")
        super().move_joints(joints_deg)

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fault:
            raise self.fault[what]


def test_closing_holds_first_and_ends_all_whatever_fails() -> None:
    camera, robot = Camera(), Robot()
    camera.gives = Frame(0.0, image=GREY)
    arm = arm_body(camera, driver=robot)
    arm.open()
    robot.asked.clear()
    robot.fault = {"hold": DriverError("gone"), "close": RuntimeError("gone")}
    arm.close()
    assert robot.asked == ["hold", "close"]
    wait_until(lambda: camera.closed == camera.opened, "the camera closed")


def test_what_the_robot_refuses_is_a_body_error() -> None:
    camera, robot = Camera(), Robot()
    camera.gives = Frame(0.0, image=GREY)
    arm = arm_body(camera, driver=robot)
    robot.fault = {"open": RobotFault("error", "emergency stop")}
    with pytest.raises(BodyFault, match="emergency stop"):
        arm.open()
    assert camera.closed == camera.opened == 1
    robot.fault = {"move": DriverError("refused")}
    arm.open()
    with pytest.raises(BodyError, match="refused") as refused:
        arm.move(np.zeros(6))
    assert not isinstance(refused.value, BodyFault)
    robot.asked.clear()
    for bad in (np.zeros(7), np.full(6, np.inf)):
        with pytest.raises(BodyError, match="not a target"):
            arm.move(bad)
    assert robot.asked == []
    arm.close()


class Sensor:
    """A sensor driver that gives blocks that the test puts in."""

    def __init__(self) -> None:
        self.blocks: list[SampleBlock | Exception] = []
        self.opened = 0

    def open(self) -> None:
        self.opened += 1

    def read(self, timeout_s: float) -> SampleBlock | None:
        if not self.blocks:
            threading.Event().wait(0.002)
            return None
        block = self.blocks.pop(0)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        pass

    def give(self, first: float, start: float, count: int = 5) -> None:
        steps = np.arange(count)
        alines = np.repeat((start + steps)[:, None], 2, axis=1)
        self.blocks.append(
            SampleBlock(
                first + 0.001 * steps,
                (100 + start + steps).astype(np.float32),
                alines.astype(np.float32),
            )
        )


def test_sensor_windows_are_in_order_whole_and_fresh() -> None:
    driver = Sensor()
    watch = SensorWatch(driver, 100)
    driver.give(0.0, 0)
    watch.open(20.0)
    driver.give(0.005, 5)

    def window() -> np.ndarray | None:
        return watch.window(8)

    wait_until(lambda: window() is not None, "eight samples")
    rows = window()
    assert rows is not None
    assert rows[:, 0].tolist() == [102 + k for k in range(8)]
    assert rows[:, 1].tolist() == rows[:, 2].tolist() == [2 + k for k in range(8)]
    wait_until(lambda: window() is None, "the window to be too old")
    # A second is missing: what came before must not stand beside what comes.
    driver.give(3.0, 50, 6)
    wait_until(lambda: watch.window(6) is not None, "six samples")
    assert window() is None
    driver.blocks.append(
        SampleBlock(np.array([3.006]), np.full(1, np.nan, np.float32), np.zeros((1, 2), np.float32))
    )
    wait_until(lambda: watch.unsound == 1, "the unsound sample")
    driver.blocks.append(DriverError("unplugged"))
    wait_until(lambda: driver.opened == 2, "the sensor opened again")
    driver.give(3.01, 60, 8)
    wait_until(lambda: window() is not None, "samples again")
    watch.close()
    watch.close()


def test_a_sensor_that_gives_nothing_keeps_the_body_closed() -> None:
    watch = SensorWatch(Sensor(), 100)
    with pytest.raises(BodyError, match=r"no sample within 0.05 s from the sensor \(no sample yet"):
        watch.open(0.05)
