"""Runs a policy from a server in a simulated environment: episodes, success rate, rewards, videos.

    python serving/sim_client.py --env.type pusht --policy_type act --pretrained_name_or_path PATH

The queue, the thresholds, the aggregation and the control loop are the robot client's own.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("serving")

from common.program import OptionError, ProgramError, run
from serving import environments
from serving.body import BodyError
from serving.client_arguments import arguments
from serving.client_status import ClientStatus, write_summary
from serving.control_loop import ControlLoop
from serving.control_values import Step
from serving.link import Link
from serving.queue_plot import QueueHistory
from serving.sim_body import EnvironmentBody
from serving.sim_clock import StretchedClock, WallClock
from serving.sim_episode import EpisodeRunner
from serving.sim_options import SimClientConfig
from serving.sim_results import Episode, SimReport
from serving.sim_video import Video
from serving.split import FastHalfHere
from serving.supervisor import Connection

__all__ = ["SimClient", "SimClientConfig", "SimReport", "main"]

logger = logging.getLogger("serving.sim_client")

_WAIT_S = 0.25


class SimClient:
    """A policy on a server, in a simulated environment.

        client = SimClient(SimClientConfig(policy_type="act", pretrained_name_or_path="…",
                                           env={"type": "pusht"}))
        if client.start():
            threading.Thread(target=client.receive_actions, daemon=True).start()
            report = client.control_loop()
            client.stop()

    `start`, `control_loop` and `stop` are for one thread, the one that renders; `stop` may be
    called from any other to end a run early. OptionError and ProgramError have one line each.
    """

    def __init__(self, config: SimClientConfig, stop: threading.Event | None = None) -> None:
        """Nothing is made or connected to yet; OptionError for options that cannot be used."""
        config.check()
        self.config = config
        self._stopping = stop or threading.Event()
        self._receiving = threading.Lock()
        self._body: EnvironmentBody | None = None
        self._link: Link | None = None
        self._connection: Connection | None = None
        self._here: FastHalfHere | None = None
        self._episodes: list[Episode] = []
        self._history = QueueHistory()

    def start(self) -> bool:
        """Make the environment, connect, have the policy loaded; False when stopped meanwhile."""
        simulator = environments.make(self.config.env, self.config.fps)
        self.config = config = self.config.at(simulator.fps)
        self._body = body = EnvironmentBody(simulator)
        try:
            body.begin(config.seed, 0)
        except BodyError as error:
            raise OptionError(str(error)) from None
        instructions = config.instructions(body.state_names, body.cameras)
        instructions = dataclasses.replace(
            instructions, rename={**body.rename, **instructions.rename}
        )
        self._here = config.fast_half(instructions)
        self._link = config.link()
        told = "no episode was run"
        self._connection = Connection(self._link, instructions, config.connection(), told)
        logger.info(
            "[SIM] %s at %g Hz; asking %s for the policy %s",
            config.env.get("task") or config.env.get("type"),
            config.fps,
            config.server_address,
            config.policy_type,
        )
        if not self._connection.begin(self._stopping):
            return False
        self._connection.start(receiving=False)
        return True

    def receive_actions(self) -> None:
        """Receive chunks until `stop`; `control_loop` does it by itself where nobody else does."""
        connection = self._connection
        if connection is None:
            raise OptionError("start() comes first")
        with self._receiving:  # one at a time: whoever comes second waits for the end
            connection.receive()

    def control_loop(self, task: str = "") -> SimReport:
        """Run all episodes, or those before `stop`; `task` is the instruction in words."""
        if self._connection is None or self._body is None:
            raise OptionError("start() comes first")
        if task:
            self.config = dataclasses.replace(self.config, task=task)
        threading.Thread(target=self.receive_actions, name="receive", daemon=True).start()
        latest = -1
        for number in range(self.config.n_episodes):
            if not self._ready(number):
                break
            loop = self._loop(latest)
            episode = self._run(number, loop)
            latest = loop.queue.latest if self._one_session else -1
            if episode is None:
                break
            self._episodes.append(episode)
            logger.info("%s", episode.line(self.config.n_episodes, self.config.fps))
        return self.report

    def stop(self) -> None:
        """End the run, let go of the server and of the environment; safe to call twice."""
        self._stopping.set()
        if self._connection is not None:
            self._connection.close()
        if self._body is not None:
            self._body.close()

    @property
    def report(self) -> SimReport:
        """What came of the episodes so far."""
        config = self.config
        mode = "lockstep" if config.lockstep else config.clock
        shown: tuple[str, ...] = ("policy_type", "pretrained_name_or_path", "seed", "env")
        shown += ("actions_per_chunk", "chunk_size_threshold", "aggregate_fn_name")
        shown += ("server_address",)
        setting = {name: getattr(config, name) for name in shown}
        return SimReport(tuple(self._episodes), config.fps, mode, setting)

    def plot(self, path: Path) -> None:
        """Draw the queue over all episodes; ProgramError where that cannot be done."""
        config = self.config
        threshold = 0.0 if config.lockstep else config.chunk_size_threshold
        self._history.plot(path, config.actions_per_chunk, threshold)

    @property
    def _one_session(self) -> bool:
        """Whether all episodes are one session of the server's."""
        if self.config.sessions == "auto":
            return bool(getattr(self._link, "stock", False))
        return self.config.sessions == "run"

    def _ready(self, number: int) -> bool:
        """Begin an episode with a session of its own; False for a stop."""
        connection, body = self._connection, self._body
        assert connection is not None and body is not None
        if number:
            if not self._one_session:
                connection.renew()
            if self._here is not None:
                self._here.forget()
            try:
                body.begin(self.config.seed + number, number)
            except BodyError as error:
                raise ProgramError(str(error)) from None
        while connection.session is None and not self._stopping.is_set():
            if connection.failure is not None:
                raise connection.failure
            connection.wait(_WAIT_S)
        return not self._stopping.is_set()

    def _loop(self, latest: int) -> ControlLoop:
        """A fresh control loop; its steps go on from `latest` where the session does."""
        body = self._body
        assert body is not None
        try:
            loop = ControlLoop(body, self.config.episode_loop(body.task, body.named), self._here)
        except ValueError as error:
            raise OptionError(str(error)) from None
        loop.queue.latest = latest
        return loop

    def _run(self, number: int, loop: ControlLoop) -> Episode | None:
        config, connection, body = self.config, self._connection, self._body
        assert connection is not None and body is not None
        seed, video = config.seed + number, None
        if config.video is not None:
            name = f"episode_{number:04d}_seed_{seed}.mp4"
            video = Video(config.video / name, config.fps)
        clock = None
        if not config.lockstep:
            clock = WallClock(config.fps) if config.clock == "wall" else StretchedClock(config.fps)
        watch = _Watch(loop, connection, config.fps, self._history)
        runner = EpisodeRunner(
            body,
            loop,
            connection,
            self._stopping,
            fps=config.fps,
            patience_s=config.answer_timeout,
            video=video,
            watch=watch.see,
        )
        try:
            episode = runner.run(number, seed, clock)
        finally:
            file = "" if video is None else video.close()
        return episode and dataclasses.replace(episode, video=file)


class _Watch:
    """Keeps the queue's history, and says every two seconds how the client stands."""

    def __init__(
        self, loop: ControlLoop, connection: Connection, fps: float, history: QueueHistory
    ) -> None:
        self._loop, self._connection, self._fps, self._history = loop, connection, fps, history
        self._status: ClientStatus | None = None

    def see(self, now: float, done: Step) -> None:
        """One step of the environment is about to be made."""
        if self._status is None:
            self._status = ClientStatus(self._loop, self._connection, self._fps, now)
        self._history.add(now, len(self._loop.queue), done.hold is not None)
        self._status.tick(0)
        if (line := self._status.line(now)) is not None:
            logger.info("%s", line)


def _run_program(env: dict[str, Any], options: SimClientConfig, stop: threading.Event) -> None:
    client = SimClient(dataclasses.replace(options, env=env), stop)
    try:
        if client.start():
            client.control_loop()
    finally:
        client.stop()
        # What was run is worth showing, whatever ended it.
        if client.report.episodes:
            _show(client)


def _show(client: SimClient) -> None:
    report, config = client.report, client.config
    sys.stdout.write(report.table() + "\n")
    if config.clock == "wall" and not config.lockstep and report.control_hz < 0.95 * report.fps:
        sys.stdout.write(
            f"the simulation reached {report.control_hz:.1f} of {report.fps:g} Hz: it is slower "
            "than the clock here. --clock stretched lets its time pass slower\n"
        )
    sys.stdout.flush()
    if config.summary is not None:
        write_summary(config.summary, report.as_dict())
    if (path := config.plot_file()) is not None:
        client.plot(path)
        logger.info("[SIM] the queue over time: %s", path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    try:
        env, rest = arguments(argv, "env", SimClientConfig)
    except OptionError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        return error.code
    return run(SimClientConfig, partial(_run_program, env), rest)


if __name__ == "__main__":
    sys.exit(main())
