"""What latches, what releases it, and what does neither."""

from __future__ import annotations

import pytest

from receiver.latch import REASONS, Latch, LatchedHold
from receiver.threads import Latest

STOP, WAITING = "robot emergency stop", "waiting for resume after robot emergency stop"


def latch(*kinds: LatchedHold) -> tuple[Latch, Latest[str]]:
    resumed: Latest[str] = Latest()
    return Latch(kinds, resumed), resumed


@pytest.mark.parametrize("kind", list(REASONS))
def test_each_kind_lasts_until_somebody_says_so(kind: LatchedHold) -> None:
    latched, resumed = latch(kind)
    assert latched.reason("") == ""
    assert latched.reason(REASONS[kind]) == REASONS[kind]
    for _ in range(3):
        assert latched.reason("") == f"waiting for resume after {REASONS[kind]}"
    resumed.put("resume")
    assert [latched.reason("") for _ in range(2)] == ["", ""]
    assert latched.reason(REASONS[kind]) == REASONS[kind]  # and again
    assert latched.reason("") == f"waiting for resume after {REASONS[kind]}"


def test_other_reasons_end_by_themselves() -> None:
    latched, _ = latch("emergency_stop")
    for reason in ("View1 silent", "robot error", "force above its limit"):
        assert latched.reason(reason) == reason
        assert latched.reason("") == ""


def test_nothing_is_released_while_it_is_still_there() -> None:
    latched, resumed = latch("emergency_stop")
    latched.reason(STOP)
    resumed.put("resume")
    assert latched.reason(STOP) == STOP
    assert latched.reason("") == WAITING


def test_a_word_said_before_is_no_leave_for_later() -> None:
    latched, resumed = latch("emergency_stop")
    resumed.put("resume")
    assert latched.reason("") == ""
    latched.reason(STOP)
    assert latched.reason("") == WAITING
    # Said in the very tick in which it begins: it was meant for something else.
    resumed.put("resume")
    assert latched.reason("") == ""
    resumed.put("resume")
    assert latched.reason(STOP) == STOP
    assert latched.reason("") == WAITING


def test_what_else_is_wrong_is_said_first_and_releases_nothing() -> None:
    latched, resumed = latch("emergency_stop", "error")
    latched.reason(STOP)
    assert latched.reason("robot silent") == "robot silent"
    assert latched.reason("") == WAITING
    # Released while a camera is away: the camera is what holds then.
    resumed.put("resume")
    assert latched.reason("View1 silent") == "View1 silent"
    assert latched.reason("") == ""
    # Two of a kind: the later one is the one to be released.
    latched.reason(STOP)
    latched.reason("robot error")
    assert latched.reason("") == "waiting for resume after robot error"
