"""Faults between a robot and its policy: what the robot does, what is said, how it goes on.

Real programs and real sockets. `Robot.ended` and `Robot.checked` look at every command that the
robot was given: range, step, speed, and that no motion came of input older than its limit.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.serving_rig import stamped_ages
from tests.serving.fault_rig import AGE_S, FPS, PATH, ROWS, TRANSPORTS, Rig, cut, refused
from tests.support import Child


@pytest.fixture
def rig(program: Callable[..., Child], tmp_path: Path) -> Rig:
    return Rig(program, tmp_path)


def test_a_server_that_is_not_there(rig: Rig) -> None:
    robots = [rig.robot(transport, "hold", "--connect_timeout", "2") for transport in TRANSPORTS]
    for robot, transport in zip(robots, TRANSPORTS, strict=True):
        line = refused(robot)
        assert "no policy server" in line and str(rig.ports[transport]) in line


def test_killed_and_restarted_in_the_middle(rig: Rig) -> None:
    server = rig.server()
    robots = rig.moving_robots()
    server.kill()
    lost_at = {robot: robot.said("the server is lost") for robot in robots}
    for robot in robots:
        robot.said("hold: the server is lost")
    rig.server()
    for robot in robots:
        again_at = robot.goes_on()
        log, summary = robot.ended()
        robot.still(log, lost_at[robot], again_at)
        robot.fresh(log, again_at, lost_at[robot])
        assert summary["sessions"] == 2


def test_the_network_is_cut_for_a_moment_and_for_two_seconds(rig: Rig) -> None:
    rig.server()
    with rig.networks() as networks:
        robots = rig.moving_robots(networks)
        cut(networks, 0.2)
        for robot in robots:
            robot.said("Status Summary", robot.lines)
            assert "the server is lost" not in robot.child.text
        seen = [robot.lines for robot in robots]
        began, healed = cut(networks, 2.0)
        for robot, line in zip(robots, seen, strict=True):
            robot.said("hold: ", line)
            robot.moving(line)
            log, summary = robot.ended()
            # While cut it goes on with what it has; a whole chunk lasts longer than its input.
            robot.still(log, began + AGE_S, healed)
            assert summary["holds"]["old_input"] >= 1 and summary["sessions"] == 1


def _cut_until_lost(rig: Rig, seconds: float) -> None:
    rig.server()
    with rig.networks() as networks:
        robots = rig.moving_robots(networks, "--connect_timeout", "1")
        began, _ = cut(networks, seconds, heal=False)
        lost_at = {robot: robot.said("the server is lost") for robot in robots}
        for robot in robots:
            robot.said("no server yet")
        for network in networks.values():
            network.heal()
        for robot in robots:
            again_at = robot.goes_on()
            log, summary = robot.ended()
            robot.still(log, began + AGE_S, again_at)
            robot.still(log, lost_at[robot], again_at)
            robot.fresh(log, again_at, lost_at[robot])
            assert summary["sessions"] == 2


def test_the_network_is_cut_until_the_server_is_lost(rig: Rig) -> None:
    _cut_until_lost(rig, 0.0)


@pytest.mark.slow
def test_the_network_is_cut_for_twenty_seconds(rig: Rig) -> None:
    _cut_until_lost(rig, 20.0)


def test_a_server_that_does_not_come_back_is_given_up(rig: Rig) -> None:
    server = rig.server()
    robots = rig.moving_robots(None, "--reconnect_timeout", "1")
    server.kill()
    for robot in robots:
        assert robot.child.end() == 1
        lost_at = robot.said("the server is lost")
        robot.said("did not come back within 1 s")
        robot.still(robot.checked(), lost_at, math.inf)


def test_two_hundred_milliseconds_of_delay_with_jitter(rig: Rig) -> None:
    rig.server()
    with rig.networks(delay_s=0.2, jitter_s=0.05) as networks:
        robots = rig.moving_robots(networks, "--chunk_size_threshold", "0.7")
        for robot in robots:
            robot.said("Status Summary.*running", robot.lines)
        for robot in robots:
            log, summary = robot.ended()
            assert summary["round_trip_ms"]["p50"] >= 300
            assert summary["sessions"] == 1 and summary["chunks"] >= 2
            # Nothing that was executed is younger than its way there and back.
            assert stamped_ages(log).min() >= 0.3


def test_a_model_that_hangs_and_comes_back(rig: Rig) -> None:
    rig.server("--inference_timeout", "0.5")
    robot = rig.robot("grpc", f"{PATH}&hang_at=45&hang_s=4")
    other = rig.robot("zmq")
    robot.moving()
    other.moving()
    stuck_at = robot.said("has not answered for over 0.5 s")
    held_at = robot.said("hold: the server")
    moved_at = robot.moving(robot.lines)
    log, summary = robot.ended()
    robot.still(log, held_at, moved_at)
    assert summary["sessions"] == 1 and summary["refusals"].get("timed_out")
    # Another policy's client noticed nothing.
    others, counted = other.ended()
    assert others.between(stuck_at, moved_at).is_move.all()
    assert counted["refusals"] == {}


def test_a_model_that_raises(rig: Rig) -> None:
    server = rig.server()
    never = [rig.robot(transport, "raise") for transport in TRANSPORTS]
    once = [rig.robot(transport, f"{PATH}&raise_at=45") for transport in TRANSPORTS]
    for robot in once:
        robot.moving()
        robot.said("asked to fail")
        for _ in range(2):
            robot.said("Status Summary.*running", robot.lines)
        _, summary = robot.ended()
        assert summary["refusals"] == {"failed": 1} and summary["sessions"] == 1
        # It went on after step 45, and with a new chunk: of the last one half was left.
        assert summary["moves"] > 45 + ROWS / 2 + 1
    for robot in never:
        robot.said("asked to fail")
        log, summary = robot.ended()
        assert not log.is_move.any() and summary["moves"] == 0
        assert summary["refusals"].get("failed")
    assert server.process.poll() is None


def test_a_policy_path_that_does_not_exist(rig: Rig) -> None:
    rig.server()
    missing, unknown = (
        [rig.robot(transport, path, policy_type=kind) for transport in TRANSPORTS]
        for kind, path in (("qwen_vla", "/no/such/policy"), ("builtin", "nonsense"))
    )
    for robot in missing:
        line = refused(robot)
        assert "/no/such/policy" in line and "the robot was not touched" in line
    for robot in unknown:
        line = refused(robot)
        assert "no builtin policy" in line and "sway" in line


def test_a_camera_that_stops(rig: Rig) -> None:
    rig.server()
    robot = rig.robot(
        "grpc",
        PATH,
        *("--camera_timeout", "0.5", "--robot.cameras", "2", "--robot.stopping_camera", "camera2"),
        *("--robot.camera_stops_after_s", "1.5", "--robot.camera_stops_for_s", "2"),
    )
    robot.moving()
    held_at = robot.said("hold: a camera is silent: camera2 has given no picture for")
    moved_at = robot.moving(robot.lines)
    log, summary = robot.ended()
    robot.still(log, held_at, moved_at)
    assert summary["holds"]["camera"] == 1 and summary["sessions"] == 1


def test_clients_that_die_in_the_middle_of_an_upload(
    rig: Rig, program: Callable[..., Child]
) -> None:
    server = rig.server()
    robots = rig.moving_robots()
    dying = [
        program(
            "scripts/bad_client.py",
            *("--address", f"127.0.0.1:{rig.ports[transport]}", "--does", does),
        )
        for transport, does in (("grpc", "half_upload"), ("zmq", "half_message"))
        for _ in range(2)
    ]
    for client in dying:
        client.wait_for("half way")
    began = time.monotonic()
    for client in dying:
        client.kill()
    for newcomer in rig.moving_robots():
        newcomer.ended()
    for robot in robots:
        log, summary = robot.ended()
        after = log.between(began, log.moves_at[-1])
        assert len(after.at) and after.is_move.all()
        assert summary["sessions"] == 1 and summary["refusals"] == {}
    assert server.process.poll() is None and "Traceback" not in server.text


def test_two_clients_and_a_third_that_floods(rig: Rig, program: Callable[..., Child]) -> None:
    server = rig.server()
    robots = rig.moving_robots()
    floods = []
    for transport in TRANSPORTS:
        flooder = program(
            "scripts/bad_client.py",
            *("--address", f"127.0.0.1:{rig.ports[transport]}", "--transport", transport),
        )
        began, _ = flooder.wait_for("flooding")
        for robot in robots:
            robot.said("Status Summary.*running", robot.lines)
        floods.append((began, time.monotonic()))
        assert flooder.stop() == 0
        assert int(re.findall(r"sent (\d+)", flooder.text)[0]) > 100
    for robot in robots:
        log, summary = robot.ended()
        for began, ended in floods:
            # It may hold now and then on a slow computer, but it is served.
            assert log.between(began, ended).is_move.sum() > 0.5 * FPS * (ended - began)
        assert summary["sessions"] == 1 and summary["refusals"] == {}
    assert server.process.poll() is None and "Traceback" not in server.text


def test_hostile_pickles_while_robots_run(
    rig: Rig, program: Callable[..., Child], tmp_path: Path
) -> None:
    server = rig.server()
    robot = rig.robot("grpc")
    robot.moving()
    trace = tmp_path / "exploited"
    hostile = program(
        "scripts/bad_client.py",
        *("--address", f"127.0.0.1:{rig.ports['grpc']}", "--does", "pickles"),
        *("--trace", str(trace)),
    )
    hostile.wait_for("sending")
    robot.said("Status Summary.*running", robot.lines)
    assert hostile.stop() == 0
    answers = hostile.text.rpartition("answers: ")[2]
    assert "INVALID_ARGUMENT" in answers and "OK" not in answers, answers
    assert not trace.exists()
    _, summary = robot.ended()
    assert summary["sessions"] == 1 and summary["refusals"] == {}
    assert server.stop() == 0 and "Traceback" not in server.text
