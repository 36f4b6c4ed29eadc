"""Robots of LeRobot as bodies: names, units and numbers as LeRobot's own client has them."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("scservo_sdk", reason="Feetech's SDK is not installed: make test-lerobot")

import cv2
import draccus
import zmq
from lerobot.cameras.zmq import ZMQCameraConfig  # noqa: F401  # as LeRobot's client, for its name
from lerobot.robots import RobotConfig, bi_so_follower, make_robot_from_config, so_follower  # noqa: F401
from lerobot.utils.feature_utils import hw_to_dataset_features

from serving.bodies import make
from serving.bodies.driver import ArmBody
from serving.bodies.lerobot_body import LeRobotBody
from serving.body import Body, BodyError
from tests.lerobot.feetech import GOAL, NAMES, TORQUE, Bus, open_patiently
from tests.support import free_ports, wait_until

# LeRobot's camera threads end by raising.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

STATES = tuple(f"{name}.pos" for name in NAMES)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    made = Bus()
    made.calibrate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def body() -> Iterator[Callable[..., Any]]:
    """`body(options)`: made, and closed at the end."""
    made: list[Body] = []

    def begin(options: dict[str, Any]) -> Body:
        made.append(make(options))
        return made[-1]

    yield begin
    for one in made:
        one.close()
        one.close()


@pytest.fixture
def arm(bus: Bus, tmp_path: Path, body: Callable[..., Any]) -> Callable[..., ArmBody]:
    """`arm(key=value)`: an SO-101 on the bus, as the client makes it."""

    def begin(**options: Any) -> ArmBody:
        made = body(so101(bus, tmp_path) | options)
        assert isinstance(made, ArmBody)
        return made

    return begin


def so101(bus: Bus, folder: Path) -> dict[str, Any]:
    return {
        "type": "so101_follower",
        "port": bus.path,
        "id": "arm",
        "calibration_dir": str(folder),
    }


def stand(bus: Bus) -> None:
    """Make where the servos stand their target: LeRobot moves an arm to old ones at once."""
    for servo in bus.servos.values():
        servo.put(GOAL, round(servo.position))


def stock(options: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """State names and an observation as LeRobot's client gets them."""
    robot = make_robot_from_config(draccus.decode(RobotConfig, options))

    def connects() -> bool:
        # LeRobot gives a servo 50 ms to answer: on a busy machine one may be late.
        try:
            robot.connect(calibrate=False)
        except ConnectionError:
            with contextlib.suppress(Exception):
                robot.disconnect()
            return False
        return True

    wait_until(connects, "LeRobot to connect")
    try:
        names = hw_to_dataset_features(robot.observation_features, "observation")
        return tuple(names["observation.state"]["names"]), robot.get_observation()
    finally:
        robot.disconnect()


# --- one arm


@pytest.mark.parametrize("use_degrees", [None, True, False])
def test_an_so101_has_the_stock_clients_names_and_numbers(
    bus: Bus, tmp_path: Path, arm: Callable[..., ArmBody], use_degrees: bool | None
) -> None:
    given = {} if use_degrees is None else {"use_degrees": use_degrees}
    stand(bus)
    names, observation = stock(so101(bus, tmp_path) | given)
    ours = arm(**given)
    open_patiently(ours)
    assert ours.state_names == ours.action_names == names == STATES
    values = ours.read().values
    assert values.tolist() == [observation[name] for name in names]
    assert values[0] == pytest.approx(
        bus.degrees(1) if use_degrees in (None, True) else 3.1, abs=0.1
    )


def test_an_so101_moves_holds_and_is_left_standing(bus: Bus, arm: Callable[..., ArmBody]) -> None:
    ours = arm(speed_scale=1.0, max_step=5.0)
    open_patiently(ours)
    assert bus.torque == [1] * 6
    limits, commanded = ours.limiter(30.0), None
    start = ours.read()
    assert 0.0 <= time.monotonic() - start.at < 5.0
    goal = start.values + np.array([20.0, -15.0, 10.0, 0.0, 30.0, 25.0])

    def there() -> bool:
        nonlocal commanded
        state = ours.read().values
        commanded = limits.next(goal, commanded, state)
        assert commanded is not None
        ours.move(commanded)
        return bool(np.allclose(state, goal, atol=0.15))

    wait_until(there, "the arm at its goal")
    ours.move(goal - 60.0)
    wait_until(lambda: ours.read().values[0] < goal[0] - 5.0, "the arm under way")
    ours.hold()
    held = ours.read().values
    goals = [servo.word(GOAL) for servo in bus.servos.values()]
    assert held[0] > goal[0] - 55.0
    ours.hold()
    assert [servo.word(GOAL) for servo in bus.servos.values()] == goals
    ours.close()
    assert bus.torque == [1] * 6, "the arm would fall"
    open_patiently(ours)
    assert ours.read().values == pytest.approx(held, abs=3.0)


def test_an_arm_is_let_go_of_where_lerobots_option_says_so(
    bus: Bus, arm: Callable[..., ArmBody]
) -> None:
    ours = arm(disable_torque_on_disconnect=True)
    open_patiently(ours)
    assert bus.torque == [1] * 6
    ours.close()
    assert bus.torque == [0] * 6


def test_limits_are_the_calibrated_ranges_or_those_given(arm: Callable[..., ArmBody]) -> None:
    half = (3340 - 760) / 2 * 360 / 4095
    limits = arm().limiter(30.0)
    assert limits.high[0] == pytest.approx(half)
    assert (limits.low[5], limits.high[5]) == (0.0, 100.0)
    assert limits.step == pytest.approx([2.0] * 6)
    given = arm(
        joint_min={"shoulder_pan": -5},
        joint_max={"gripper.pos": 60},
        joint_speed=30,
        speed_scale=0.1,
    ).limiter(30.0)
    assert given.low[0] == -5.0
    assert given.high[:1] == pytest.approx([half])
    assert given.high[5] == 60.0
    assert given.step == pytest.approx([0.1] * 6)
    percent = arm(use_degrees=False).limiter(30.0)
    assert (percent.low.tolist(), percent.high.tolist()) == ([-100.0] * 5 + [0.0], [100.0] * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "so101_folower"}, "no robot 'so101_folower': .*simulated.*of LeRobot: .*so101_f"),
        ({"colour": "red"}, "so101_follower: .*`colour`"),
        ({"id": "other"}, r"no calibration .*other.json: run lerobot-calibrate"),
        ({"id": 7}, r"no calibration .*7.json"),
        ({"joint_min": {"elbow": 1}}, "--robot.joint_min: no 'elbow'; there are shoulder_pan.pos"),
        ({"joint_min": 120}, "joint_min must be below joint_max"),
        ({"speed_scale": 0}, "--robot.speed_scale must be from"),
        ({"cameras": {"front": {"type": "camara"}}}, "camara"),
        ({"cameras": {"front": {"type": "opencv", "index_or_path": 0}}}, "'width' is required"),
        ({"use_degrees": "maybe"}, "use_degrees"),
    ],
)
def test_options_that_cannot_be_used_end_in_one_line(
    arm: Callable[..., ArmBody], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BodyError, match=message) as caught:
        arm(**options)
    assert "\n" not in str(caught.value)


def test_a_bus_that_is_silent_or_gone_is_a_body_error(
    bus: Bus, arm: Callable[..., ArmBody]
) -> None:
    ours = arm()
    bus.silent = {3}
    with pytest.raises(BodyError, match="no answer from servo 3"):
        ours.open()
    bus.silent = set()
    open_patiently(ours)
    bus.close()
    for call in (ours.read, lambda: ours.move(np.zeros(6)), ours.hold):
        with pytest.raises(BodyError):
            call()


# --- cameras


class Pictures:
    """What publishes pictures for LeRobot's `zmq` camera: JPEGs in JSON, as its server does."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.shade, self.paused = 60, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def options(self, **more: Any) -> dict[str, Any]:
        where = {"type": "zmq", "server_address": "127.0.0.1", "port": self.port}
        return where | {"width": 32, "height": 24, "fps": 30, "timeout_ms": 200} | more

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _publish(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            socket.set(zmq.LINGER, 0)
            socket.bind(f"tcp://127.0.0.1:{self.port}")
            while not self._stop.wait(0.05):
                image = np.full((24, 32, 3), self.shade, np.uint8)
                jpeg = base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode()
                if not self.paused:
                    socket.send_string(json.dumps({"images": {"front": jpeg}}))


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    made = Pictures()
    yield made
    made.close()


def test_cameras_are_lerobots_own_and_nobody_waits_for_them(
    bus: Bus, tmp_path: Path, arm: Callable[..., ArmBody], pictures: Pictures
) -> None:
    cameras = {"front": pictures.options(), "wrist": pictures.options()}
    names, observation = stock(so101(bus, tmp_path) | {"cameras": cameras})
    ours = arm(cameras=cameras)
    open_patiently(ours)
    assert ours.state_names == names
    assert ours.cameras == {"front": (24, 32, 3), "wrist": (24, 32, 3)}
    first = ours.seen()
    assert set(first) == {"front", "wrist"}
    assert (first["front"].pixels == observation["front"]).all()
    assert not first["front"].pixels.flags.writeable
    pictures.shade = 200
    wait_until(lambda: ours.seen()["wrist"].pixels[0, 0, 0] > 190, "the new shade")
    pictures.paused = True
    wait_until(lambda: time.monotonic() - ours.seen()["front"].at > 0.5, "the camera silent")
    assert ours.read().values.shape == (6,)
    pictures.shade, pictures.paused = 120, False
    wait_until(lambda: 110 < ours.seen()["front"].pixels[0, 0, 0] < 130, "pictures again")


class FilmCapture:
    """A film that passes for a device: at a device's pace, and it takes what it is set to."""

    real = cv2.VideoCapture

    def __init__(self, *where: Any) -> None:
        self.capture = self.real(*where)

    def set(self, *_: Any) -> bool:
        return True

    def read(self) -> Any:
        threading.Event().wait(0.005)
        return self.capture.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.capture, name)


def test_an_opencv_camera_that_ends_is_opened_again(
    tmp_path: Path, arm: Callable[..., ArmBody], monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    for shade in range(0, 240, 2):
        writer.write(np.full((48, 64, 3), (0, 0, shade), np.uint8))  # ever more red
    writer.release()
    monkeypatch.setattr(cv2, "VideoCapture", FilmCapture)
    camera = {"type": "opencv", "index_or_path": str(film), "width": 64, "height": 48, "fps": 30}
    ours = arm(cameras={"film": camera | {"warmup_s": 0}})
    open_patiently(ours)

    def red() -> int:
        pixels = ours.seen()["film"].pixels
        assert int(pixels[..., 1:].max()) < 60
        return int(pixels[..., 0].mean())

    wait_until(lambda: red() > 200, "the end of the film")
    wait_until(lambda: red() < 150, "the film again")


def test_a_camera_of_lerobots_that_is_not_there_keeps_the_arm_untouched(
    bus: Bus, arm: Callable[..., ArmBody]
) -> None:
    (port,) = free_ports(1)
    camera = {"type": "zmq", "server_address": "127.0.0.1", "port": port, "timeout_ms": 100}
    ours = arm(cameras={"front": camera | {"width": 32, "height": 24, "fps": 30}}, open_timeout=0.5)
    with pytest.raises(BodyError, match=r"no picture within 0.5 s from camera front"):
        ours.open()
    assert not bus.written


# --- two arms, mobile bases, somebody's own


def test_two_arms_are_moved_as_one_within_both_calibrations(
    tmp_path: Path, body: Callable[..., Any], pictures: Pictures
) -> None:
    buses = {"left": Bus(), "right": Bus()}
    try:
        options: dict[str, Any] = {"type": "bi_so_follower", "id": "two"}
        options["calibration_dir"] = str(tmp_path)
        for side, bus in buses.items():
            bus.calibrate(tmp_path, f"two_{side}")
            options[f"{side}_arm_config"] = {"port": bus.path}
        buses["right"].servos[2].position += 50
        for bus in buses.values():
            stand(bus)
        names, observation = stock(options)
        with_cameras = options | {"cameras": {"front": pictures.options()}}
        with_cameras["left_arm_config"] = options["left_arm_config"] | {
            "cameras": {"wrist": pictures.options()}
        }
        two = body(with_cameras)
        assert isinstance(two, LeRobotBody)
        for bus in buses.values():
            bus.written.clear()
        open_patiently(two)
        for bus in buses.values():
            first_goal = next(k for k, one in enumerate(bus.written) if one[1] == GOAL)
            torque_on = [k for k, one in enumerate(bus.written) if one[1:] == (TORQUE, b"\x01")]
            assert first_goal < torque_on[0], "torque came on with an old target"
        assert two.state_names == two.action_names == names
        assert len(names) == 12
        assert two.read().values.tolist() == [observation[name] for name in names]
        assert two.cameras == {"front": (24, 32, 3), "left_wrist": (24, 32, 3)}
        assert set(two.seen()) == {"front", "left_wrist"}
        limits = two.limiter(30.0)
        assert limits.low[:6] == pytest.approx(limits.low[6:])
        assert (limits.low[11], limits.high[11]) == (0.0, 100.0)
        assert limits.step == pytest.approx([2.0] * 12)
        goal = two.read().values + 8.0
        two.move(goal)
        wait_until(lambda: np.allclose(two.read().values, goal, atol=0.15), "both arms there")
        two.move(goal - 40.0)
        two.hold()
        goals = [servo.word(GOAL) for bus in buses.values() for servo in bus.servos.values()]
        two.hold()
        assert goals == [s.word(GOAL) for bus in buses.values() for s in bus.servos.values()]
        two.close()
        for bus in buses.values():
            assert bus.torque == [1] * 6, "an arm would fall"
    finally:
        for bus in buses.values():
            bus.close()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed package of the name by which LeRobot finds plugins; its class `Slider`."""
    folder = tmp_path / "site"
    package = folder / "lerobot_robot_slider"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from tests.lerobot.slider import Slider, SliderConfig\n")
    about = folder / "lerobot_robot_slider-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_slider\n")
    monkeypatch.syspath_prepend(str(folder))

    def robots() -> list[Any]:
        from tests.lerobot.slider import Slider

        return Slider.made

    return robots


def test_a_plugins_robot_is_moved_once_its_limits_are_given(
    plugin: Callable[[], list[Any]], body: Callable[..., Any], pictures: Pictures
) -> None:
    slider = {"type": "slider", "base": True, "eye": True}
    with pytest.raises(BodyError, match=r"limits of left.pos, right.pos, base.vel are not known"):
        body(slider)
    with pytest.raises(BodyError, match=r"limits of base.vel are not known"):
        body(slider | {"joint_min": {"left": -9, "right": -9}, "joint_max": 9})
    with pytest.raises(BodyError, match=r"base.vel stands still at 0"):
        body(slider | {"joint_min": [-9, -9, 1], "joint_max": 9})
    with pytest.raises(BodyError, match=r"other.pos is moved by position but not measured"):
        body({"type": "slider", "unmeasured": True, "joint_min": -1, "joint_max": 1})
    ours = body(
        slider
        | {"joint_min": [-9, -9, -0.5], "joint_max": {"left": 9, "right": 9, "base.vel": 0.5}}
        | {"cameras": {"front": pictures.options()}, "speed_scale": 1.0}
    )
    open_patiently(ours)
    robot = plugin()[-1]
    assert robot.is_connected
    assert not robot.cameras, "the camera is read apart"
    assert ours.state_names == ours.action_names == ("left.pos", "right.pos", "base.vel")
    assert ours.cameras == {"eye": (12, 16, 3), "front": (24, 32, 3)}
    assert robot.told == [{"left.pos": 1.5, "right.pos": -2.5, "base.vel": 0.0}]
    assert ours.read().values.tolist() == [1.5, -2.5, 0.25]
    assert set(ours.seen()) == {"eye", "front"}
    assert (ours.seen()["eye"].pixels == 1).all()
    limits = ours.limiter(20.0)
    assert limits.step == pytest.approx([2.0, 2.0, 0.05])
    target = limits.next(np.array([100.0, 0.0, 3.0]), None, ours.read().values)
    assert target == pytest.approx([3.5, -0.5, 0.3])
    ours.move(target)
    assert robot.told[-1] == pytest.approx({"left.pos": 3.5, "right.pos": -0.5, "base.vel": 0.3})
    ours.hold()
    ours.hold()
    assert robot.told[2:] == [pytest.approx({"left.pos": 3.5, "right.pos": -0.5, "base.vel": 0.0})]
    for bad in (np.zeros(2), np.array([0.0, np.nan, 0.0])):
        with pytest.raises(BodyError, match="not a target"):
            ours.move(bad)
    ours.move(np.array([3.5, -0.5, 0.3]))
    ours.close()
    assert robot.told[-1]["base.vel"] == 0.0, "left standing still"
    assert not robot.is_connected


def test_a_plugins_robot_that_fails_hangs_or_is_not_calibrated(
    plugin: Callable[[], list[Any]], body: Callable[..., Any]
) -> None:
    ours = body({"type": "slider", "joint_min": -9, "joint_max": 9})
    with pytest.raises(BodyError, match="not connected"):
        ours.read()
    open_patiently(ours)
    robot = plugin()[-1]
    robot.trouble = OSError("the cable\nis out")
    with pytest.raises(BodyError, match="the cable is out"):
        ours.read()
    robot.trouble = None
    robot.at["left.pos"] = float("nan")
    with pytest.raises(BodyError, match="not finite"):
        ours.read()
    robot.at["left.pos"] = 1.0
    robot.stuck.clear()
    with pytest.raises(BodyError, match="no end to read after 1 s"):
        ours.read()
    with pytest.raises(BodyError):
        ours.move(np.zeros(2))
    told = len(robot.told)
    ours.close()
    robot.stuck.set()
    open_patiently(ours)
    assert plugin()[-1] is not robot
    assert len(robot.told) == told
    assert ours.read().values.tolist() == [1.5, -2.5]
