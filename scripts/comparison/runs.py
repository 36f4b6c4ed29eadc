"""One architecture on one trajectory, on the wall clock: the control loop of `serving`, for real.

The four differ in who predicts, and when. The queue, the limits and the control loop are the same.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.clock import Ticker
from common.program import OptionError, ProgramError
from scripts.comparison.body import FollowingBody
from scripts.comparison.measures import Method, Outcome, Told, laid_out
from scripts.comparison.policy import FollowingFastHalf, FollowingPolicy
from scripts.comparison.predictors import InLoop, InThread, Predictor
from scripts.comparison.server import LISTENS, POLICY_TYPE, follow_path
from scripts.comparison.trajectory import Trajectory
from scripts.processes import Program, start, stop_all
from serving.aggregation import choose
from serving.control_loop import ControlLoop
from serving.control_values import HOLDS, LoopOptions
from serving.messages import Instructions, ServingError
from serving.split import FastHalfHere
from serving.supervisor import Connection, ConnectionOptions
from serving.transports.zmq_link import ZmqLink

__all__ = ["FollowServer", "RunError", "Setup", "Stopped", "run"]

_START_S = 60.0
_LOOK_S = 0.02
_SLACK_S = 1.0


class RunError(Exception):
    """A run that cannot be made; one line."""


class Stopped(Exception):
    """Somebody asked for an end."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for all architectures.

    Attributes:
        trajectory: to follow; its rate is the control rate.
        delay_s: how long a prediction takes.
        chunk_size: rows of a chunk, and of what the features hold.
        threshold: ask for the next chunk when at most this part of one is queued. (The synchronous
            loop asks when nothing is.)
        aggregation: for rows both queued and new.
        busy: predictions compute instead of waiting.
    """

    trajectory: Trajectory
    delay_s: float
    chunk_size: int = 100
    threshold: float = 0.5
    aggregation: str = "weighted_average"
    busy: bool = False

    def loop(self, method: Method) -> LoopOptions:
        """What the control loop is run with."""
        span_s = self.chunk_size / self.trajectory.rate_hz
        return LoopOptions(
            fps=self.trajectory.rate_hz,
            actions_per_chunk=self.chunk_size,
            chunk_size_threshold=0.0 if method == "synchronous" else self.threshold,
            aggregation=choose(self.aggregation),
            max_input_age_s=span_s + self.delay_s + _SLACK_S,
            must_go_after_s=2.0 * self.delay_s + 2.0,
            sensor_samples=1,
        )

    def instructions(self, body: FollowingBody) -> Instructions:
        """What is asked of the policy."""
        return Instructions(
            POLICY_TYPE,
            follow_path(self.delay_s, self.busy),
            actions_per_chunk=self.chunk_size,
            state_names=body.state_names,
            fps=self.trajectory.rate_hz,
        )


class FollowServer:
    """The policy server as a process of its own. A context manager; start it before any thread."""

    def __init__(self, trajectory: Trajectory, folder: Path) -> None:
        """Its files go into `folder`."""
        self._trajectory, self._folder = trajectory, folder
        self._program: Program | None = None
        self.port = 0

    def __enter__(self) -> FollowServer:
        """Start it and wait until it listens; RunError where it does not."""
        path = self._folder / "trajectory.npz"
        self._trajectory.save(path)
        arguments = ["scripts/comparison/server.py", "--trajectory", str(path.resolve())]
        self._program = start("the policy server", arguments, self._folder / "server.log")
        try:
            self.port = self._wait_for_port(self._program)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_for_port(self, program: Program) -> int:
        assert program.log is not None
        deadline, pause = time.monotonic() + _START_S, threading.Event()
        while True:
            said = program.log.read_text(encoding="utf-8", errors="replace")
            _, found, rest = said.partition(LISTENS)
            if found and "\n" in rest:
                return int(rest.split()[0])
            if program.process.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"the policy server does not start: {program.last_words(2)}")
            pause.wait(_LOOK_S)

    def __exit__(self, *_error: object) -> None:
        """Stop it."""
        if self._program is not None:
            stop_all([self._program])


def run(
    method: Method,
    setup: Setup,
    server: FollowServer,
    stop: threading.Event,
    progress: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Follow the trajectory to its end in one architecture, in real time.

    The clock starts with the first action, so that nobody is charged for the very first prediction,
    which every architecture waits for alike. `progress` is told the share that is done.

    Raises:
        RunError: the robot was never moved, or the server failed.
        Stopped: `stop` was set.
    """
    body = FollowingBody(setup.trajectory)
    instructions = setup.instructions(body)
    try:
        with _predictor(method, setup, instructions, server, stop) as predictor:
            here = None
            if method == "dual-rate":
                span_s = setup.chunk_size * setup.trajectory.period_s
                # Without names: the fast half's columns are the body's.
                nameless = replace(instructions, state_names=())
                here = FastHalfHere(FollowingFastHalf(setup.trajectory), nameless, span_s)
            body.open()
            loop = ControlLoop(body, setup.loop(method), here)
            told = _drive(loop, body, predictor, setup, stop, progress)
    except (ServingError, ProgramError) as error:
        raise RunError(f"{method}: {error}") from None
    finally:
        body.close()
    return laid_out(method, setup.delay_s, setup.trajectory, told)


@contextlib.contextmanager
def _predictor(
    method: Method,
    setup: Setup,
    instructions: Instructions,
    server: FollowServer,
    stop: threading.Event,
) -> Iterator[Predictor]:
    """Who predicts in this architecture."""
    if method in ("synchronous", "threaded"):
        policy = FollowingPolicy(setup.trajectory, setup.delay_s, setup.busy)
        here = InLoop if method == "synchronous" else InThread
        with contextlib.closing(here(policy, instructions)) as predictor:
            yield predictor
        return
    options = ConnectionOptions(answer_timeout_s=2.0 * setup.delay_s + 15.0)
    connection = Connection(ZmqLink(f"127.0.0.1:{server.port}"), instructions, options)
    with contextlib.closing(connection):
        try:
            if not connection.begin(stop):
                raise Stopped
        except OptionError as error:
            raise RunError(str(error)) from None
        connection.start()
        yield connection
    # The server is still at a prediction that nobody wants now: it is not the next run's to wait.
    stop.wait(setup.delay_s)


def _drive(
    loop: ControlLoop,
    body: FollowingBody,
    predictor: Predictor,
    setup: Setup,
    stop: threading.Event,
    progress: Callable[[float], None],
) -> Told:
    """Tick until the trajectory is over."""
    rows = len(setup.trajectory)
    ticker = Ticker(setup.trajectory.rate_hz)
    give_up_at = time.monotonic() + 2.0 * setup.delay_s + _START_S
    ticks: list[int] = []
    ages: list[float] = []
    first: int | None = None
    for tick in ticker.ticks(stop):
        if first is not None and tick.index - first >= rows:
            break
        if predictor.failure is not None:
            raise predictor.failure
        now, before = time.monotonic(), len(body.commands)
        if first is None and now > give_up_at:
            why = "nothing" if loop.holding is None else HOLDS[loop.holding]
            raise RunError(f"the robot was not moved within {_START_S:g} s: {why}")
        session = predictor.session
        done = loop.step(now, session, predictor.arrivals(), may_send=predictor.free)
        if done.row is not None:
            first = tick.index if first is None else first
            ages.append(body.commands[-1].at - done.row.measured_at)
        ticks += [tick.index] * (len(body.commands) - before)
        if done.observation is not None and session is not None:
            predictor.send(done.observation, session)
        progress(0.0 if first is None else (tick.index - first) / rows)
    if stop.is_set():
        raise Stopped
    assert first is not None and body.began_at is not None
    return _told(body, ticks, first, ages, setup.trajectory)


def _told(
    body: FollowingBody, ticks: list[int], first: int, ages: list[float], trajectory: Trajectory
) -> Told:
    """What happened from the first motion on."""
    began_at = body.began_at
    assert began_at is not None
    body.read()  # the path goes on to this moment
    kept = [k for k, command in enumerate(body.commands) if command.at >= began_at]
    commands = [body.commands[k] for k in kept]
    return Told(
        ticks=np.array([ticks[k] - first for k in kept], np.int64),
        at=np.array([command.at for command in commands]),
        targets=np.array([command.target for command in commands]),
        is_move=np.array([not command.is_hold for command in commands]),
        input_ages_s=np.array(ages),
        measured=body.measured(began_at + trajectory.times_s),
    )
