"""The scoreboard in a program with a real terminal, and what it reads."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.scoreboard import read_score
from tests.support import ROOT

# Ends, as the demo does, while nobody types; its output is what the receiver would be told.
PROGRAM = """
import os, sys
from pathlib import Path
from scripts.scoreboard import Scoreboard
board = Scoreboard(Path(sys.argv[1]), sys.stdout.buffer)
os.read(int(sys.argv[2]), 1)
board.close()
"""


def entry(place: int, **changed: Any) -> str:
    figures = {"number": place, "seed": 4 + place, "success": True, "took_s": 3.85}
    return json.dumps(figures | {"reason": "", "rms_mm": 0.39} | changed) + "\n"


def test_typed_lines_and_scores_are_told_and_a_terminal_lets_go_at_the_end(tmp_path: Path) -> None:
    score = tmp_path / "score.jsonl"
    keyboard, terminal = pty.openpty()
    ending, end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(score), str(ending)],
        cwd=ROOT,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[ending],
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        try:
            os.write(keyboard, b"task go on\nrecord on\n")
            assert child.stdout.readline() == b"task go on\n"
            assert child.stdout.readline() == b"record on\n"
            score.write_text(entry(0) + entry(1, success=False, reason="force", rms_mm=None))
            told = child.stdout.readline()
            score.write_text("nonsense\n")
            spoilt = child.stdout.readline()
            os.write(keyboard, b"note half a li")
            os.write(end, b"!")
            rest, said = child.communicate(timeout=60)
        finally:
            child.kill()
            for number in (keyboard, terminal, ending, end):
                os.close(number)
    assert told == b"note 1 of 2 episodes succeeded; the last one: failed, force\n"
    assert spoilt.startswith(b"note no score: ") and b"no judged episode: 'nonsense'" in spoilt
    assert (rest, said.decode(), child.returncode) == (b"", "", 0)


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "score.jsonl"
    assert read_score(path) == []
    path.write_text(entry(0) + entry(1)[:-9])
    assert [episode["seed"] for episode in read_score(path)] == [4]


@pytest.mark.parametrize(
    "line", ["hello\n", "[1]\n", '{"number": 0}\n', entry(0, success="yes"), entry(0, number=None)]
)
def test_what_is_no_score_is_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "score.jsonl"
    path.write_text(entry(0) + line)
    with pytest.raises(ValueError, match=r"score.jsonl: line 2 is no judged episode") as raised:
        read_score(path)
    assert "\n" not in str(raised.value)
