"""What latches, what releases it, and what does neither."""

from __future__ import annotations

import pytest

from receiver.latch import REASONS, Latch, LatchedHold
from receiver.threads import Latest

STOP, WAITING = "robot emergency stop", "waiting for resume after robot emergency stop"


KINDS = {reason: kind for kind, reason in REASONS.items()}


def said(latched: Latch, reason: str) -> str:
    """A tick with this reason and no other."""
    return latched.reason(reason, [KINDS[reason]] if reason in KINDS else [])


def latch(*kinds: LatchedHold) -> tuple[Latch, Latest[str]]:
    resumed: Latest[str] = Latest()
    return Latch(kinds, resumed), resumed


@pytest.mark.parametrize("kind", list(REASONS))
def test_each_kind_lasts_until_somebody_says_so(kind: LatchedHold) -> None:
    latched, resumed = latch(kind)
    assert said(latched, "") == ""
    assert said(latched, REASONS[kind]) == REASONS[kind]
    for _ in range(3):
        assert said(latched, "") == f"waiting for resume after {REASONS[kind]}"
    resumed.put("resume")
    assert [said(latched, "") for _ in range(2)] == ["", ""]
    assert said(latched, REASONS[kind]) == REASONS[kind]  # and again
    assert said(latched, "") == f"waiting for resume after {REASONS[kind]}"


def test_other_reasons_end_by_themselves() -> None:
    latched, _ = latch("emergency_stop")
    for reason in ("View1 silent", "robot error", "force above its limit"):
        assert said(latched, reason) == reason
        assert said(latched, "") == ""


def test_nothing_is_released_while_it_is_still_there() -> None:
    latched, resumed = latch("emergency_stop")
    said(latched, STOP)
    resumed.put("resume")
    assert said(latched, STOP) == STOP
    assert said(latched, "") == WAITING


def test_a_word_said_before_is_no_leave_for_later() -> None:
    latched, resumed = latch("emergency_stop")
    resumed.put("resume")
    assert said(latched, "") == ""
    said(latched, STOP)
    assert said(latched, "") == WAITING
    # Said in the very tick in which it begins: it was meant for something else.
    resumed.put("resume")
    assert said(latched, "") == ""
    resumed.put("resume")
    assert said(latched, STOP) == STOP
    assert said(latched, "") == WAITING


def test_what_else_is_wrong_is_said_first_and_releases_nothing() -> None:
    latched, resumed = latch("emergency_stop", "error")
    said(latched, STOP)
    assert said(latched, "robot silent") == "robot silent"
    assert said(latched, "") == WAITING
    # Released while a camera is away: the camera is what holds then.
    resumed.put("resume")
    assert said(latched, "View1 silent") == "View1 silent"
    assert said(latched, "") == ""
    # Two of a kind: the later one is the one to be released.
    said(latched, STOP)
    said(latched, "robot error")
    assert said(latched, "") == "waiting for resume after robot error"


def test_what_is_behind_another_reason_is_latched_as_well() -> None:
    latched, resumed = latch("force")
    assert latched.reason("View1 silent", ["force"]) == "View1 silent"
    assert latched.reason("", []) == "waiting for resume after force above its limit"
    resumed.put("resume")
    assert latched.reason("View1 silent", ["force"]) == "View1 silent"  # not while it lasts
    assert latched.reason("", []) == "waiting for resume after force above its limit"
