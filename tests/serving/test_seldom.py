"""Log lines that clients can cause are few."""

from __future__ import annotations

import logging

import pytest

from serving.seldom import Seldom
from tests.support import wait_until

logger = logging.getLogger("tests.seldom")


def test_each_sort_is_logged_at_most_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seldom = Seldom(logger, every_s=3600.0)
    for number in range(100):
        seldom.log(logging.WARNING, "not loaded: %s", number)
        seldom.log(logging.INFO, "%s is loaded", number)
    assert caplog.messages == ["not loaded: 0", "0 is loaded"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_what_was_left_out_is_said_with_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    seldom, said = Seldom(logger, every_s=0.2), 0

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == logger.name]

    def twice() -> bool:
        nonlocal said
        seldom.log(logging.WARNING, "not loaded: %s", said)
        said += 1
        return len(lines()) == 2

    wait_until(twice, "the second line")
    assert said > 2
    assert lines()[1] == f"not loaded: {said - 1}; {said - 2} more like it were left out"


def test_the_error_behind_a_line_is_logged_with_it(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise OSError("no space left")
    except OSError as error:
        Seldom(logger).log(logging.WARNING, "not loaded", cause=error)
    assert "OSError: no space left" in caplog.text
    assert "Traceback" in caplog.text
