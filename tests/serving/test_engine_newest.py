"""Which observations are worth predicting from."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from serving.messages import Observation
from serving.newest import Likeness, NewestSlot
from tests.serving.engines import Asking, Start, seen, start, told
from tests.support import wait_until

__all__ = ["start"]  # the fixture

WINDOW = np.ones((4, 2), np.float32)


def slot(
    share: float = 0.0, unchanged_for_s: float = 1.0, **ranges: tuple[float, float]
) -> NewestSlot:
    return NewestSlot(Likeness(share, ("a", "b"), ranges), unchanged_for_s)


def predicted(where: NewestSlot, timestep: int = 0, **more: object) -> NewestSlot:
    assert where.offer(seen(timestep, must_go=True, **more), 0.0) == "taken"  # type: ignore[arg-type]
    assert where.take(0.0).observation.timestep == timestep
    return where


def test_the_newest_takes_the_place_of_one_that_waits() -> None:
    held = slot()
    assert held.offer(seen(1), 0.0) == "taken"
    assert held.offer(seen(2, must_go=True), 0.5) == "replaced"
    assert held.offer(seen(1), 0.6) == "filtered"  # it was overtaken on the way
    assert (held.take(1.0).observation.timestep, held.filled) == (2, False)
    with pytest.raises(LookupError):
        held.take(1.0)


def test_a_step_is_predicted_once_unless_it_must() -> None:
    held = predicted(slot(), 5)
    assert held.offer(seen(5, (9.0, 9.0)), 0.1) == "filtered"
    assert held.offer(seen(5, (9.0, 9.0), must_go=True), 0.1) == "taken"


def test_a_state_that_did_not_change_is_left_out_for_a_while() -> None:
    held = predicted(slot())
    assert held.offer(seen(1), 0.9) == "filtered"
    assert held.offer(seen(2), 1.0) == "taken"  # what stands before it may have changed
    assert predicted(slot(unchanged_for_s=0.0)).offer(seen(1), 0.0) == "taken"


def test_without_a_tolerance_the_smallest_change_counts() -> None:
    nearly = float(np.nextafter(np.float32(1.0), np.float32(2.0)))
    assert predicted(slot()).offer(seen(1, (nearly, 2.0)), 0.1) == "taken"


@pytest.mark.parametrize(
    "more",
    [{"task": "another"}, {"sensor": WINDOW}, {"wants": "features"}, {"state": (1.0, 2.0, 3.0)}],
)
def test_whatever_else_an_answer_depends_on_counts_too(more: dict[str, object]) -> None:
    assert predicted(slot()).offer(seen(1, **more), 0.1) == "taken"  # type: ignore[arg-type]


def test_the_same_window_is_no_change() -> None:
    assert predicted(slot(), sensor=WINDOW).offer(seen(1, sensor=WINDOW.copy()), 0.1) == "filtered"
    assert predicted(slot(), sensor=WINDOW).offer(seen(1, sensor=2 * WINDOW), 0.1) == "taken"


def test_a_window_too_large_to_keep_is_always_new() -> None:
    window = np.ones((1024, 257), np.float32)
    assert predicted(slot(), sensor=window).offer(seen(1, sensor=window), 0.1) == "taken"


def test_nothing_of_a_message_is_kept_after_its_prediction_has_begun() -> None:
    message = np.ones(1024, np.float32)  # state and window are views of it, as of what came
    observation = Observation(0, 0.0, True, message[:2], sensor=message[8:16].reshape(4, 2))
    memory = weakref.ref(message)
    held = slot()
    held.offer(observation, 0.0)
    held.take(0.0)
    del message, observation
    assert memory() is None
    assert held.offer(seen(1, (1.0, 1.0), sensor=WINDOW), 0.1) == "filtered"


@pytest.mark.parametrize("path", ["hold", "raise"])
def test_the_engine_lets_go_of_pictures_once_they_were_predicted_from(
    start: Start, path: str
) -> None:
    engine = start()
    engine.ready("a")
    engine.instruct("a", told(path, cameras={"front": (4, 6, 3)}))
    observation = seen(0, cameras=["front"])
    pixels = weakref.ref(observation.pictures["front"].pixels)  # type: ignore[arg-type]
    engine.observe("a", observation)
    del observation
    assert Asking(engine, "a").result is not None
    wait_until(lambda: pixels() is None, "the pictures to be let go of")


def test_a_tolerance_is_a_share_of_the_known_range() -> None:
    ranges = {"a": (0.0, 10.0), "b": (0.0, 1.0)}
    assert predicted(slot(0.01, **ranges)).offer(seen(1, (1.09, 2.0)), 0.1) == "filtered"
    assert predicted(slot(0.01, **ranges)).offer(seen(1, (1.11, 2.0)), 0.1) == "taken"
    assert predicted(slot(0.01, **ranges)).offer(seen(1, (1.0, 2.02)), 0.1) == "taken"


def test_a_tolerance_is_a_share_of_the_range_seen_where_none_is_known() -> None:
    slow = predicted(slot(0.01))
    # A slow robot, or one in radians: its first small moves are all the range there is.
    assert slow.offer(seen(1, (1.001, 2.0)), 0.1) == "taken"
    wide = slot(0.01)
    wide.offer(seen(0, (0.0, 0.0)), 0.0)
    wide.offer(seen(1, (100.0, 1.0)), 0.0)
    wide.take(0.0)
    assert wide.offer(seen(2, (99.5, 1.0)), 0.1) == "filtered"
    assert wide.offer(seen(3, (99.5, 0.98)), 0.1) == "taken"


def test_small_moves_add_up_against_the_last_prediction() -> None:
    held = predicted(slot(0.01, a=(0.0, 10.0), b=(0.0, 10.0)))
    offered = [held.offer(seen(n, (1.0 + 0.04 * n, 2.0)), 0.1) for n in range(1, 4)]
    assert offered == ["filtered", "filtered", "taken"]


def test_after_a_failure_the_same_step_may_be_tried_again() -> None:
    held = predicted(slot(), 7)
    held.failed(7)
    assert held.offer(seen(7), 0.1) == "taken"


def test_what_is_remembered_of_predicted_steps_is_bounded() -> None:
    held = slot(unchanged_for_s=0.0)
    for step in range(3000):
        held.offer(seen(step), 0.0)
        held.take(0.0)
    assert held.offer(seen(2999), 0.0) == "filtered"
    assert held.offer(seen(2500), 0.0) == "filtered"
    assert held.offer(seen(0), 0.0) == "taken"
    assert len(held._predicted) <= 1024
