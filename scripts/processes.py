"""Starts the programs of a run beside each other and ends them in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.stopping import die_with_parent

__all__ = ["ROOT", "Program", "start", "stop_all", "wait_for_any"]

ROOT = Path(__file__).resolve().parents[1]
_STOP_S = 10.0


@dataclass(slots=True)
class Program:
    """A program that runs: its name, its process, where its output goes (None: the terminal)."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None = None

    def last_words(self, lines: int = 5) -> str:
        """The end of its output."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4096, 0))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])


def _end_with_parent() -> None:
    """So that no orphan stays when the script is killed."""
    die_with_parent(signal.SIGTERM)


def start(
    name: str, arguments: Sequence[str], log: Path | None = None, *, typed: bool = False
) -> Program:
    """Start `python ARGUMENTS…` from the repository's root; output to `log` or the terminal.

    With `typed`, one with the terminal gets its input from `process.stdin` instead. A program with
    a log is out of reach of the terminal's Ctrl+C: whoever started it ends it.
    """
    command = [sys.executable, *arguments]
    if log is None:
        source = subprocess.PIPE if typed else None
        return Program(name, subprocess.Popen(command, cwd=ROOT, stdin=source))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  no thread runs yet that could hold a lock
        )
    return Program(name, process, log)


def wait_for_any(programs: Sequence[Program], timeout_s: float | None = None) -> Program | None:
    """The first program to end; None when none did in time."""
    ended: list[Program] = []
    done = threading.Event()

    def watch(program: Program) -> None:
        program.process.wait()
        ended.append(program)
        done.set()

    for program in programs:
        threading.Thread(target=watch, args=(program,), daemon=True).start()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while not done.wait(0.2):  # a wait without end would keep Ctrl+C from being seen
        if deadline is not None and time.monotonic() >= deadline:
            return None
    return ended[0]


def stop_all(programs: Sequence[Program]) -> list[str]:
    """End each program in turn and wait for it; what did not end cleanly, a line each.

    With SIGTERM: one that is still being loaded leaves without a word, where an interrupt would
    end in a traceback.
    """
    trouble = []
    for program in programs:
        asked = program.process.poll() is None
        if asked:
            program.process.terminate()
            try:
                program.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.process.wait()
                trouble.append(f"{program.name} did not stop in {_STOP_S:g} s and was killed")
                continue
        code = program.process.returncode
        if code != 0 and not (asked and code == -signal.SIGTERM):
            words = program.last_words(2)
            trouble.append(f"{program.name} ended with code {code}: {words}")
    return trouble
