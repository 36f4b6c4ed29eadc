"""A sender's clock that was set is said, once, with its name."""

from __future__ import annotations

import logging

import pytest

from receiver.sender_clock import SenderClock

EPOCH = 1.7e9


@pytest.mark.parametrize(
    ("by_s", "said"), [(0.5, "+500 ms"), (-0.5, "-500 ms"), (-7200.0, "-7200.0 s")]
)
def test_a_step_is_said_once(caplog: pytest.LogCaptureFixture, by_s: float, said: str) -> None:
    clock = SenderClock("camera View1")
    with caplog.at_level(logging.INFO):
        for number in range(600):
            at = EPOCH + number / 30
            clock.update(at - 3.0 + (by_s if number >= 300 else 0.0), at + 0.001)
    assert [record.message for record in caplog.records] == [
        f"[CLOCK] camera View1: its clock was set by {said}: calibrated again"
    ]
    assert clock.steps == 1
    assert clock.offset_s == pytest.approx(3.001 - by_s, abs=1e-5)


def test_a_clock_that_jumps_without_end_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = SenderClock("robot")
    with caplog.at_level(logging.INFO):
        for number in range(20_000):
            at = EPOCH + number / 100
            clock.update(at - 100.0 * (number // 100), at)
    assert clock.steps > 100
    assert len(caplog.records) <= 5  # all of it passes in well under five seconds


def test_a_name_for_the_log() -> None:
    clock = SenderClock("sensor")
    assert (clock.name, clock.offset_s, clock.calibrated) == ("sensor", None, False)
