"""The rig's drivers against a running rig process, and without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from senders.drivers import CameraDriver, DriverError, Frame, RobotDriver, SampleBlock, SensorDriver
from sim.ascan import SAMPLES, depth_of_mm
from sim.drivers import SimForceSensor, SimRobot, open_sim_cameras
from sim.layout import HOME_DEG
from sim.model import VIEWS
from tests.sim.conftest import Rig
from tests.support import free_ports, wait_until

StartRig = Callable[..., Rig]


def robot_of(rig: Rig) -> SimRobot:
    robot = SimRobot(state_port=rig.state_port, command_port=rig.command_port)
    robot.open()
    return robot


def test_the_robot_moves_holds_and_says_where_it_is(rig: StartRig) -> None:
    running = rig()
    with closing(robot_of(running)) as robot:
        _: RobotDriver = robot
        first = robot.read()
        assert abs(first.sampled_at - time.time()) < 0.5
        assert first.joints_deg == pytest.approx(HOME_DEG, abs=0.05)
        assert first.pose.shape == (6,) and first.force_n == pytest.approx(0.0, abs=0.05)
        goal = np.array(HOME_DEG) + 4.0
        robot.move_joints(goal)
        wait_until(lambda: np.abs(robot.read().joints_deg - goal).max() < 0.1, "the joints", 10)
        pose = first.pose.copy()
        robot.move_pose(pose)
        wait_until(lambda: np.abs(robot.read().pose - pose)[:3].max() < 0.3, "the pose", 10)
        robot.move_joints(goal)
        robot.hold()
        held = robot.read().joints_deg
        assert np.abs(held - goal).max() > 0.5  # stopped on its way
        with pytest.raises(DriverError):
            robot.move_joints(np.full(6, np.nan))
        robot.reset(6)
        wait_until(lambda: robot.read().episode == 1, "the next episode", 10)
    robot.close()


def test_the_robot_reports_a_rig_that_went_and_recovers_when_it_is_back(rig: StartRig) -> None:
    running = rig()
    with closing(robot_of(running)) as robot:
        robot.read()
        running.child.kill()

        def gone() -> bool:
            try:
                robot.read()
            except DriverError as error:
                return "no state" in str(error)
            return False

        wait_until(gone, "the rig to be missed", 5)
        with pytest.raises(DriverError):
            # What was on its way when the connection broke may still be taken.
            for _ in range(100):
                robot.hold()
        rig("--seed", "4", ports=[running.state_port, running.command_port])

        def back() -> bool:
            try:
                robot.read()
                robot.hold()
            except DriverError:
                return False
            return True

        wait_until(back, "the rig to be back", 15)


def test_sensor_blocks_are_gapless_and_show_the_tissue(rig: StartRig) -> None:
    running = rig("--tissue-amplitude-mm", "0", "--port-spread", "0")
    sensor = SimForceSensor(state_port=running.state_port)
    _: SensorDriver = sensor
    sensor.open()
    blocks: list[SampleBlock] = []
    with closing(sensor):
        while sum(b.timestamps.size for b in blocks) < 400:
            block = sensor.read(1.0)
            assert block is not None
            blocks.append(block)
    for block in blocks[1:]:
        count = len(block.timestamps)
        assert count >= 10
        assert block.forces.shape == (count,) and block.forces.dtype == np.float32
        assert block.alines.shape == (count, SAMPLES) and block.alines.dtype == np.float32
    stamps = np.concatenate([block.timestamps for block in blocks])
    assert np.median(np.diff(stamps)) == pytest.approx(1 / 650, abs=2e-6)
    assert (np.diff(stamps) > 0).all() and abs(stamps[-1] - time.time()) < 1.0
    mean = np.concatenate([block.alines for block in blocks]).mean(axis=0)
    # At home, nothing varied: 4 mm to the port and 8 mm on to the tissue.
    assert abs(int(mean.argmax()) - depth_of_mm(12.0)) < 8
    assert np.abs(np.concatenate([block.forces for block in blocks])).max() < 0.05
    running.child.kill()
    wait_until(lambda: sensor.read(0.01) is None, "no more samples", 5)


@pytest.mark.usefixtures("rendering")
def test_five_cameras_in_five_threads_share_a_renderer(rig: StartRig) -> None:
    running = rig()
    cameras = open_sim_cameras(width=160, height=90, fps=15, state_port=running.state_port)
    assert [camera.name for camera in cameras] == list(VIEWS)
    frames: dict[str, list[Frame]] = {name: [] for name in VIEWS}
    done = threading.Event()

    def film(camera: CameraDriver) -> None:
        camera.open()
        while not done.is_set():
            frame = camera.read(0.2)
            if frame is not None:
                frames[camera.name].append(frame)
        camera.close()
        camera.close()

    threads = [threading.Thread(target=film, args=(camera,)) for camera in cameras]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(map(len, frames.values())) >= 5, "five frames of each", 40)
        # The same rig again with another seed: filmed on, and its port is elsewhere.
        before = frames["View5"][-1].image
        running.child.kill()
        rig("--seed", "9", ports=[running.state_port, running.command_port])
        at = time.time()
        wait_until(lambda: frames["View5"][-1].captured_at > at, "frames after a restart", 20)
        after = frames["View5"][-1].image
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert before is not None and after is not None
    assert np.abs(before.astype(int) - after).max() > 50
    for name, filmed in frames.items():
        stamps = [frame.captured_at for frame in filmed]
        assert stamps == sorted(set(stamps)), name
        assert all(f.image is not None and f.image.shape == (90, 160, 3) for f in filmed)
    one, two = frames["View1"][0].image, frames["View2"][0].image
    assert one is not None and two is not None and not np.array_equal(one, two)


def test_without_a_rig_every_driver_says_how_to_start_one() -> None:
    (port,) = free_ports(1)
    camera = open_sim_cameras(width=64, height=64, names=["View1"], state_port=port)[0]
    robot, sensor = SimRobot(state_port=port), SimForceSensor(state_port=port)
    errors: list[str] = []

    def open_it(driver: SimRobot | SimForceSensor | CameraDriver) -> None:
        try:
            driver.open()
        except DriverError as error:
            errors.append(str(error))
        finally:
            driver.close()

    threads = [threading.Thread(target=open_it, args=(d,)) for d in (camera, robot, sensor)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert len(errors) == 3
    assert all(f"{port}: start it with python sim/rig_server.py" in error for error in errors)
    assert all("\n" not in error for error in errors)


def test_names_that_are_no_views_take_the_views_in_order() -> None:
    cameras = open_sim_cameras(names=["ZED_1_left", "OAK"])
    assert [camera.name for camera in cameras] == ["ZED_1_left", "OAK"]
    for names in ([], ["View1"] * 2, [f"c{i}" for i in range(6)], ["View2", "other"]):
        with pytest.raises(ValueError):
            open_sim_cameras(names=names)
    with pytest.raises(DriverError, match="not open"):
        cameras[0].read(0.0)
