"""The receiver: three sensor streams in, a slow loop and a fast loop, actions out.

python receiver/main.py --checkpoint PATH --vl-reuse 4
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file: import the project from this checkout, and nothing from this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver")

from rich.live import Live

from common.heap import keep_freed_memory
from common.priority import this_process_first
from common.stopping import stopping
from policies.base import ActingPolicy, PolicyError, PolicySpec
from receiver import control
from receiver.console import Console
from receiver.control import Heard
from receiver.decoding import to_jpeg
from receiver.encoders import Encoder, LocalEncoder
from receiver.encoding_process import EncodingProcess
from receiver.folders import SessionFolders
from receiver.inputs import InputError
from receiver.loading import (
    CannotRun,
    PolicyOptions,
    black_pictures,
    load,
    load_fast_half,
    on_cpu,
    warm_up,
)
from receiver.options import ReceiverOptions
from receiver.rerun_tap import RerunError
from receiver.runtime import Runtime
from receiver.status import banner, draw, status_lines, waiting_line
from receiver.summary import summarize, write_json
from receiver.threads import Worker

logger = logging.getLogger(__name__)

_STATUS_S = 2.0
_DRAW_S = 0.25
_TICK_S = 0.1


def main() -> int:
    """Parse, build, run, stop; the exit code."""
    options = cli.parse(ReceiverOptions)
    keep_freed_memory()
    folders = _folders(options)
    policy, encoder = _policy(options)
    live = sys.stdout.isatty() and not options.plain
    console = Console(live)
    with stopping() as stop:
        try:
            run = Runtime(options, policy, encoder, folders, console, stop)
        except InputError as error:
            encoder.close()
            console.close()
            cli.fail(
                f"{error}; is another receiver running, or is another port meant (--ports)?", 1
            )
        except RerunError as error:
            encoder.close()
            console.close()
            cli.fail(str(error))
        for line in banner(run):
            logger.info(line)
        # A thread that wakes up waits for this long for one that computes: the default is 5 ms.
        sys.setswitchinterval(0.0005)
        before_others = this_process_first()
        run.start()
        _say_priority(before_others)
        Worker(
            "control",
            lambda: control.listen(Heard(run.task, run.note, run.resumed, run.recorder), stop),
            _ignore,
        ).start()
        try:
            if live:
                _show(run)
            else:
                _print(run)
        finally:
            run.close()
            console.close()  # what is said from here on is for the terminal itself
            code = _finish(run)
    return code


def _say_priority(before_others: bool) -> None:
    if before_others:
        logger.info("Scheduling: before other programs")
    else:
        logger.info(
            "Scheduling: like any other program; to be put before others, start it as root or "
            "allow it with `ulimit -e 30 -r 10` (limits.conf: nice, rtprio)"
        )


def _ignore(_: str) -> None:
    """What is typed is a convenience: nothing ends because it failed."""


def _folders(options: ReceiverOptions) -> SessionFolders:
    try:
        return SessionFolders(options.output_dir)
    except OSError as error:
        cli.fail(f"--output-dir {options.output_dir}: {error.strerror}; name a folder to write to")


def _policy(options: ReceiverOptions) -> tuple[ActingPolicy, Encoder]:
    """The policy's fast half and where its slow half runs, both warmed up."""
    slow = options.slow_loop
    try:
        if slow == "process" or (slow == "auto" and on_cpu(options.device)):
            return _policy_in_two(options)
        policy = load(PolicyOptions.of(options))
        _check_fits(policy.spec, options)
        warm_up(policy, lambda: policy.encode(black_pictures(policy.spec), policy.spec.task))
        return policy, LocalEncoder(policy)
    except PolicyError as error:
        cli.fail(str(error), 1 if isinstance(error, CannotRun) else 2)


def _policy_in_two(options: ReceiverOptions) -> tuple[ActingPolicy, Encoder]:
    """The fast half here, the slow half in a process of its own."""
    wanted = PolicyOptions.of(options)
    encoder = EncodingProcess(wanted)
    try:
        spec = encoder.wait_ready()
        _check_fits(spec, options)
        policy = load_fast_half(wanted, spec)
        encoder.unpack = policy.unpack
        jpegs = {view: to_jpeg(picture) for view, picture in black_pictures(spec).items()}
        warm_up(policy, lambda: encoder.encode(jpegs, spec.task))
        return policy, encoder
    except BaseException:
        encoder.close()
        raise


def _check_fits(spec: PolicySpec, options: ReceiverOptions) -> None:
    channels = spec.sensor_channels
    if spec.sensor_window and channels != options.aline_length + 1:
        raise PolicyError(
            f"the policy takes {channels} sensor channels, but --aline-length "
            f"{options.aline_length} gives {options.aline_length + 1}"
        )


def _print(run: Runtime) -> None:
    due = time.monotonic()
    while not run.wait(_TICK_S):
        if time.monotonic() < due:
            continue
        due += _STATUS_S
        for line in status_lines(run) if run.started else [waiting_line(run)]:
            logger.info(line)


def _show(run: Runtime) -> None:
    with Live(draw(run), auto_refresh=False, screen=False, transient=False) as live:
        while not run.wait(_DRAW_S):
            live.update(draw(run), refresh=True)


def _finish(run: Runtime) -> int:
    summary = summarize(run)
    if not run.started:
        logger.warning("stopped before inference started: %s", waiting_line(run))
    for folder in run.folders.made:
        logger.info("session: %s", folder)
    if run.options.summary:
        try:
            write_json(summary, run.options.summary)
            logger.info("summary: %s", run.options.summary)
        except OSError as error:
            logger.error("--summary %s cannot be written: %s", run.options.summary, error.strerror)
            return 1
    if run.failure:
        logger.error("stopped: %s", run.failure)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # Ctrl+C while the policy is being loaded: nothing to stop yet
        sys.exit(130)
