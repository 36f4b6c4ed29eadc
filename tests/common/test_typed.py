"""Lines typed while a program runs, through real pipes and a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from common.typed import LONGEST_BYTES, typed_lines
from tests.support import ROOT, wait_until


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    """What is written here is typed: the other end of standard input."""
    source, keys = os.pipe()
    with open(source) as reader, open(keys, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", reader)
        yield writer


class Listening:
    """A thread that reads what is typed."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.lines: list[bytes] = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        for line in typed_lines(self.stop):
            self.lines.append(line)

    def ended(self) -> bool:
        return not self.thread.is_alive()


def test_lines_come_as_they_are_typed_and_the_last_one_at_the_end(keyboard: IO[bytes]) -> None:
    heard = Listening()
    keyboard.write(b"task gr")
    keyboard.write(b"asp it\n\nnote \xff\nrec")
    wait_until(lambda: len(heard.lines) == 3, "three lines")
    assert heard.lines == [b"task grasp it", b"", b"note \xff"]
    keyboard.write(b"ord on")
    keyboard.close()
    wait_until(heard.ended, "the end")
    assert heard.lines[3:] == [b"record on"]


def test_a_stop_is_noticed_while_nothing_is_typed(keyboard: IO[bytes]) -> None:
    heard = Listening()
    keyboard.write(b"one\nand a ha")
    wait_until(lambda: heard.lines, "a line")
    heard.stop.set()
    wait_until(heard.ended, "the end")
    assert heard.lines == [b"one"]  # nobody finished the other one


def test_of_a_line_without_end_only_the_beginning_is_kept(keyboard: IO[bytes]) -> None:
    heard = Listening()
    keyboard.write(b"task " + b"a" * (4 * LONGEST_BYTES) + b"\nnote b\n")
    wait_until(lambda: len(heard.lines) == 2, "two lines")
    assert heard.lines == [b"task " + b"a" * (LONGEST_BYTES - 5), b"note b"]


def test_without_a_standard_input_there_are_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert list(typed_lines(threading.Event())) == []


def test_a_terminal_that_goes_away_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, terminal = pty.openpty()
    with open(terminal) as reader:
        monkeypatch.setattr(sys, "stdin", reader)
        heard = Listening()
        os.write(screen, b"note hello\n")
        wait_until(lambda: heard.lines, "a line")
        os.close(screen)
        wait_until(heard.ended, "the end")
    assert heard.lines == [b"note hello"]


# A shell with a program behind it (`program &`), which it then brings to the front (`fg`).
SHELL = """
import fcntl, os, signal, subprocess, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
program = "import sys, threading\\nfrom common.typed import typed_lines\\n"
program += "print('ready', flush=True)\\n"
program += "for line in typed_lines(threading.Event()): print('heard', line, flush=True)"
behind = subprocess.Popen([sys.executable, "-c", program], process_group=0, stdout=subprocess.PIPE)
behind.stdout.readline()
print("behind", flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
until, stopped = time.monotonic() + 1.0, 0
while not stopped and time.monotonic() < until:
    stopped, _ = os.waitpid(behind.pid, os.WNOHANG | os.WUNTRACED)
    time.sleep(0.02)
print("suspended" if stopped else "still running", flush=True)
sys.stdin.readline()
os.tcsetpgrp(0, behind.pid)
print("in front", flush=True)
print(behind.stdout.readline().decode().strip(), flush=True)
behind.kill()
"""


def test_a_program_behind_another_leaves_the_terminal_alone() -> None:
    screen, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHELL],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""

    def wait_for(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(screen, 4096)
            assert b"suspended" not in shown

    try:
        wait_for(b"behind")
        os.write(screen, b"for the shell\n")
        wait_for(b"still running")
        wait_for(b"in front")
        os.write(screen, b"resume\n")
        wait_for(b"heard b'resume'")
    finally:
        child.kill()
        child.wait()
        os.close(screen)
