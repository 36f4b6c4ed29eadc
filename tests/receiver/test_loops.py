"""The loops inside one process, with a policy that misbehaves on order, over real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from common import endpoints, wire
from receiver.summary import summarize
from tests.receiver.rig import Rig
from tests.support import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()
    assert rig.run.failure is None


@pytest.mark.parametrize(
    ("stream", "reason"),
    [("robot", "robot silent"), ("camera", "View1 silent"), ("sensor", "sensor silent")],
)
def test_a_silent_stream_holds_until_it_is_back(rig: Rig, stream: str, reason: str) -> None:
    rig.wait_for_motion()
    rig.feeding.discard(stream)
    held = rig.wait_for_hold(reason)
    assert not held.actions.any()
    rig.feeding.add(stream)
    rig.wait_for_motion()
    assert rig.run.actions.holds[reason] > 0


def test_a_robot_in_error_holds_at_once_though_its_states_go_on(rig: Rig) -> None:
    rig.wait_for_motion()
    status = wire.RobotStatus("emergency_stop", time.time(), "button at the door")
    rig.robot_socket.send_multipart(wire.encode_robot_status(status))
    rig.wait_for_hold("robot emergency stop")
    said = "[ROBOT] emergency_stop: button at the door"
    wait_until(lambda: said in " ".join(rig.console.recent), "what is said of it", 10)
    # Asked to go on while the button is still pressed: no.
    rig.run.resumed.put("resume")
    wait_until(lambda: "cannot be released" in " ".join(rig.console.recent), "the refusal", 10)
    rig.robot_socket.send_multipart(wire.encode_robot_status(wire.RobotStatus("ok", time.time())))
    # The button is out again, and nothing moves by that.
    waiting = "waiting for resume after robot emergency stop"
    first = rig.wait_for_hold(waiting)
    rig.wait_for_action(lambda a: a.seq > first.seq + 20 and a.reason == waiting, "it to wait")
    rig.run.resumed.put("resume")
    rig.wait_for_motion()
    assert "robot silent" not in rig.run.actions.holds
    released = "[HOLD] released: robot emergency stop"
    wait_until(lambda: released in " ".join(rig.console.recent), "what is said of that", 10)


def test_a_stop_taken_back_within_a_tick_is_latched_all_the_same(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.say("emergency_stop")
    rig.say("ok")
    rig.wait_for_hold("waiting for resume after robot emergency stop")
    rig.run.resumed.put("resume")
    rig.wait_for_motion()


def test_a_stop_that_is_on_at_the_start_is_latched(tmp_path: Path) -> None:
    rig = Rig(tmp_path, feeding=("robot", "sensor"))
    try:
        # A sender that has no robot yet says "lost", which latches nothing.
        rig.wait_for_hold("starting")
        wait_until(lambda: rig.run.robot.newest.get() is not None, "the robot to be heard", 20)
        rig.say("lost")
        rig.say("emergency_stop")
        rig.wait_for_hold("robot emergency stop")
        rig.say("ok")
        waiting = "waiting for resume after robot emergency stop"
        rig.wait_for_hold(waiting)
        rig.feeding.add("camera")
        assert rig.run.actions.started.wait(20)
        first = rig.wait_for_hold(waiting)
        rig.wait_for_action(lambda a: a.seq > first.seq + 20 and a.reason == waiting, "it to wait")
        rig.run.resumed.put("resume")
        rig.wait_for_motion()
    finally:
        rig.close()


def test_a_latched_hold_outlasts_the_episode(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.say("error")
    rig.wait_for_hold("robot error")
    rig.robot_socket.send_multipart(wire.encode_episode_end())
    rig.say("ok")
    rig.wait_for_hold("waiting for resume after robot error")
    assert rig.run.episodes.current is not None
    assert rig.run.episodes.current.number == 2
    rig.run.resumed.put("resume")
    rig.wait_for_motion()


def test_a_slow_half_that_hangs_lets_the_features_grow_old(rig: Rig) -> None:
    first = rig.wait_for_motion()
    hanging, hung = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        hanging.wait(20)

    rig.policy.encode_does = hang
    assert hung.wait(10)
    # The fast loop goes on with what it has, beyond the reuse, and only then holds.
    rig.wait_for_action(lambda a: not a.hold and a.seq > first.seq + 10, "reuse while it hangs")
    assert rig.wait_for_hold("features old").feature_age > 0.5
    rig.policy.encode_does = lambda: None
    hanging.set()
    assert rig.wait_for_motion().feature_age < 0.6
    assert rig.run.actions.late_updates > 0


def test_a_slow_half_that_raises_is_tried_again(rig: Rig) -> None:
    rig.wait_for_motion()

    def fail() -> None:
        raise RuntimeError("out of memory")

    rig.policy.encode_does = fail
    rig.wait_for_hold("features old")
    rig.policy.encode_does = lambda: None
    rig.wait_for_motion()
    assert rig.run.features.failures > 0


def test_a_fast_half_that_raises_holds(rig: Rig) -> None:
    rig.wait_for_motion()

    def fail() -> None:
        raise RuntimeError("no kernel image")

    rig.policy.act_does = fail
    rig.wait_for_hold("policy failed")
    rig.policy.act_does = lambda: None
    rig.wait_for_motion()


def test_an_action_from_inputs_that_grew_old_meanwhile_never_leaves(rig: Rig) -> None:
    rig.wait_for_motion()

    # Longer than a robot state is good for (0.3 s here): what it saw is no longer so.
    def hang() -> None:
        threading.Event().wait(0.4)

    rig.policy.act_does = hang
    rig.wait_for_hold("inference took too long")
    rig.drain()
    rig.wait_for_hold("inference took too long")
    rig.policy.act_does = lambda: None
    rig.wait_for_motion()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_never_leaves(rig: Rig, bad: float) -> None:
    rig.wait_for_motion()
    rig.policy.rows = np.full((8, 7), bad, np.float32)
    rig.wait_for_hold("policy failed")
    rig.policy.rows = np.zeros((8, 7), np.float32)
    rig.wait_for_motion()


def test_what_leaves_is_inside_the_limits_whatever_the_policy_says(rig: Rig) -> None:
    rig.policy.rows = np.full((8, 7), 1e4, np.float32)
    speeds = np.array(rig.run.options.limits.joint_speed_deg_s)
    rig.wait_for_motion()
    action = rig.wait_for_motion()
    assert (np.abs(action.actions[:, :6]) <= speeds * 0.02 + 1e-3).all()
    assert (action.actions[:, 6] <= 1.0).all()
    assert rig.run.actions.cuts["joint_speed"] > 0


@pytest.mark.parametrize("force", [3.5, -3.5])
def test_too_much_force_holds(rig: Rig, force: float) -> None:
    rig.wait_for_motion()
    rig.force = force
    rig.wait_for_hold("force above its limit")
    rig.force = 0.2
    rig.wait_for_motion()


def test_the_policy_sees_rgb_and_the_newest_samples_in_order(rig: Rig) -> None:
    rig.wait_for_motion()
    red, green, blue = rig.policy.images[0].reshape(-1, 3).mean(0)
    assert red > 180
    assert max(green, blue) < 30
    wait_until(lambda: rig.policy.windows[-1].shape == (20, 4), "a whole window")
    assert rig.policy.windows[-1][0, 0] == pytest.approx(0.1)


def test_the_task_can_be_changed_while_it_runs(rig: Rig) -> None:
    rig.wait_for_motion()
    assert rig.policy.tasks[-1] == "the policy's own"
    rig.run.task.put("something else")
    wait_until(lambda: rig.policy.tasks[-1] == "something else", "the new task")


def test_an_episode_ends_and_the_next_begins(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.feeding.discard("robot")
    rig.robot_socket.send_multipart(wire.encode_episode_end())
    rig.wait_for_action(lambda a: a.reason == "episode ended", "the end")
    assert rig.run.episodes.current is not None
    assert not rig.run.episodes.current.active
    rig.feeding.add("robot")
    assert rig.wait_for_motion().feature_update <= 3  # counts from 1 again
    assert rig.run.episodes.current.number == 2


def test_a_slow_tick_is_missed_and_the_grid_is_kept(rig: Rig) -> None:
    rig.wait_for_motion()
    pauses = [0.07]

    def pause_once() -> None:
        if pauses:
            threading.Event().wait(pauses.pop())

    rig.policy.act_does = pause_once
    wait_until(lambda: rig.run.actions.misses >= 2, "two or three missed ticks of 20 ms")
    rig.wait_for_motion()
    rig.run.close()
    assert summarize(rig.run)["deadline_misses"] >= 2


def test_the_last_word_is_hold(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.run.close()
    rig.wait_for_action(lambda a: a.hold and a.reason == "stopped", "the last word")


def test_a_picture_that_cannot_be_decoded_is_counted(rig: Rig) -> None:
    rig.wait_for_motion()
    jpeg = cv2.imencode(".jpg", np.full((360, 640, 3), 90, np.uint8))[1].tobytes()
    scan = jpeg.index(b"\xff\xda")
    # Whole by its markers, but the tables that decoding needs are gone.
    broken = jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") : scan] + jpeg[scan:]
    rig.feeding.discard("camera")
    push = rig._context.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{rig.run.options.ports.camera}")

    def counted() -> int:
        frame = wire.CameraFrame("View1", time.time(), broken)
        push.send_multipart(wire.encode_camera(frame))
        return rig.run.counters.snapshot().get(endpoints.CAMERA.stream, {}).get("undecodable", 0)

    wait_until(counted, "a broken picture to be counted", 10)
    rig.feeding.add("camera")
    rig.wait_for_motion()
