"""Runs a robot from a policy server: a queue of actions, executed at a fixed rate within limits."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("serving")

from common.clock import Ticker
from common.priority import fast_loop_first, this_process_first
from common.program import OptionError, run
from common.typed import listen_for_leave
from serving import bodies
from serving.body import Body, BodyError
from serving.client_arguments import arguments
from serving.client_options import ClientOptions
from serving.client_status import ClientStatus, write_summary
from serving.control_loop import ControlLoop
from serving.kept_body import KeptBody
from serving.queue_plot import QueueHistory
from serving.split import FastHalfHere
from serving.supervisor import Connection

__all__ = ["main", "run_client"]

logger = logging.getLogger("serving.robot_client")


def run_client(robot: dict[str, Any], options: ClientOptions, stop: threading.Event) -> None:
    """Run until `stop`; OptionError before the robot was touched, ProgramError after.

    The server comes first: a robot is not even connected to before there is a policy to move it.
    """
    resumed = threading.Event() if options.latch_stops else None
    try:
        body: Body = KeptBody(bodies.make(robot, options.fps), resumed=resumed)
    except BodyError as error:
        raise OptionError(str(error)) from None
    instructions = options.instructions(body.state_names, dict(body.cameras))
    here = options.fast_half(instructions)
    connection = Connection(options.link(), instructions, options.connection())
    where = f"{options.server_address} ({'ZeroMQ' if options.uses_zmq else 'gRPC'})"
    logger.info("[CLIENT] asking %s for the policy %s", where, options.policy_type)
    try:
        if not connection.begin(stop):
            return
        logger.info("[CLIENT] the policy is ready; connecting to the robot")
        with _opened(body):
            if resumed is not None:
                listener = threading.Thread(
                    target=listen_for_leave, args=(stop, resumed), daemon=True
                )
                listener.start()
            connection.start()
            _drive(body, here, connection, options, stop)
    finally:
        connection.close()


@contextlib.contextmanager
def _opened(body: Body) -> Any:
    """The robot connected; left standing still, whatever happens."""
    try:
        try:
            body.open()
        except BodyError as error:
            raise OptionError(f"the robot cannot be used: {error}") from None
        yield
    finally:
        try:
            with contextlib.suppress(BodyError):
                body.hold()
        finally:
            body.close()
        logger.info("[CLIENT] the robot holds and is disconnected")


def _drive(
    body: Body,
    here: FastHalfHere | None,
    connection: Connection,
    options: ClientOptions,
    stop: threading.Event,
) -> None:
    """The control loop, until `stop` or until the connection is given up."""
    try:
        loop = ControlLoop(body, options.loop(), here)
    except (ValueError, BodyError) as error:
        raise OptionError(str(error)) from None
    history = QueueHistory()
    logger.info("[CLIENT] running %s at %g Hz", ", ".join(body.action_names), options.fps)
    # What is there now stays: the collector need not walk through it in the middle of a motion.
    gc.collect()
    gc.freeze()
    if this_process_first() and fast_loop_first():
        logger.info("[CLIENT] the control loop runs in real time (SCHED_FIFO)")
    ticker = Ticker(options.fps)
    status = ClientStatus(loop, connection, options.fps, ticker.start)
    try:
        for tick in ticker.ticks(stop):
            if connection.failure is not None:
                raise connection.failure
            now = time.monotonic()
            # In this order: what is taken after a session was lost and begun anew belongs to the
            # new one, and is not in the inbox before an observation of the new one was sent.
            session = connection.session
            arrivals = connection.arrivals()
            done = loop.step(now, session, arrivals, may_send=connection.free)
            if done.observation is not None and session is not None:
                connection.send(done.observation, session)
            history.add(now, len(loop.queue), done.hold is not None)
            status.tick(tick.skipped)
            if (line := status.line(now)) is not None:
                logger.info("%s", line)
    finally:
        with contextlib.suppress(BodyError):
            body.hold()
        _report(loop, status, history, options)


def _report(
    loop: ControlLoop, status: ClientStatus, history: QueueHistory, options: ClientOptions
) -> None:
    now = time.monotonic()
    logger.info("%s", status.final(now))
    if options.summary is not None:
        write_summary(options.summary, status.summary(now))
    if (path := options.plot_file()) is not None:
        history.plot(path, loop.queue.capacity, options.chunk_size_threshold)
        logger.info("[CLIENT] the queue over time: %s", path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    try:
        robot, rest = arguments(argv)
    except OptionError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        return error.code
    return run(ClientOptions, partial(run_client, robot), rest)


if __name__ == "__main__":
    sys.exit(main())
