"""The simulated rig as a process of its own, in step with the wall clock.

    python sim/rig_server.py --seed 0

Publishes its state at 260 Hz and takes commands; cameras, robot and force sensor of `sim.drivers`
connect to it as if they were devices.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("sim")

import numpy as np
import tyro
import zmq

from common.clock import Tick, Ticker, wall
from common.endpoints import RIG_COMMAND, RIG_STATE, address
from common.program import OptionError, check_number, check_port
from common.stopping import stopping
from sim.layout import RigConfig
from sim.messages import MAX_COMMAND_BYTES, Command, RigState, decode_command, encode_state
from sim.rig import InsertionRig, Reading
from sim.scoring import Score
from sim.trace import Trace

__all__ = ["RigServer", "ServerOptions", "main"]

_SUBSTEPS = 5  # 1300 Hz of physics, 260 Hz of states
_SAMPLE_EVERY = 2  # the force sensor samples at 650 Hz
_MAX_BEHIND_S = 0.1
_REPORT_S = 5.0
_EPISODE_S = 15.0
_LONGEST_S = 1e9
# So long after an episode began, commands are still those of the episode before: who sends them
# has not heard of it yet.
_DEAF_S = 0.05
# The wall clock may be set while this runs; smaller corrections stay out of the sample times.
_CLOCK_STEP_S = 0.005


@dataclass
class ServerOptions:
    """Run the simulated insertion rig; senders use it with `--driver sim`."""

    # What the port's place is drawn from.
    seed: int = 0
    # Address to bind; 0.0.0.0 for drivers on other machines.
    host: str = "127.0.0.1"
    # TCP port that states are published on.
    state_port: int = RIG_STATE.port
    # TCP port on which commands are taken.
    command_port: int = RIG_COMMAND.port
    # Stop after so many seconds; 0 runs until interrupted.
    duration: float = 0.0
    # Write a CSV of the motion at 100 Hz.
    trace: Path | None = None
    # Start another episode, with the next seed, every so many seconds; 0 never does.
    episode_s: float = 0.0
    # Judge each episode by the task: it ends with its success, with too much force, or --episode-s
    # (15 s where that is 0) after its first command.
    judged: bool = False
    # How long an episode goes on after its success.
    linger_s: float = 1.0
    # Write each judged episode as a line of JSON.
    score: Path | None = None
    # The rig itself.
    rig: tyro.conf.OmitArgPrefixes[RigConfig] = field(default_factory=RigConfig)

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        if not 0 <= self.seed < 2**31:
            raise OptionError("--seed must be within 0 to 2147483647")
        check_port("--state-port", self.state_port)
        check_port("--command-port", self.command_port)
        check_number("--duration", self.duration, 0, _LONGEST_S)
        check_number("--episode-s", self.episode_s, 0, _LONGEST_S)
        check_number("--linger-s", self.linger_s, 0, _LONGEST_S)


class RigServer:
    """Steps the rig with the clock, publishes what it measures, does what it is told."""

    def __init__(self, options: ServerOptions) -> None:
        """Build the rig and bind its two sockets; raises zmq.ZMQError when a port is in use."""
        self.options = options
        self.rig = InsertionRig(options.rig, options.seed)
        self._run_id = int.from_bytes(os.urandom(3), "little")
        self._context = zmq.Context()
        self._states = self._context.socket(zmq.PUB)
        self._commands = self._context.socket(zmq.PULL)
        try:
            self._states.set(zmq.SNDHWM, RIG_STATE.hwm)
            self._commands.set(zmq.RCVHWM, RIG_COMMAND.hwm)
            self._commands.set(zmq.MAXMSGSIZE, MAX_COMMAND_BYTES)
            for socket in (self._states, self._commands):
                socket.set(zmq.LINGER, 0)
                socket.set(zmq.IPV6, 1 if ":" in options.host else 0)
            self._states.bind(address(options.host, options.state_port))
            self._commands.bind(address(options.host, options.command_port))
            self._trace = Trace(options.trace) if options.trace else None
            self._score: Score | None = None
            if options.judged:
                limit_s = options.episode_s or _EPISODE_S
                self._score = Score(limit_s, options.linger_s, options.score)
        except (zmq.ZMQError, OSError):
            self._context.destroy(linger=0)
            raise
        self.ticks = self.slips = self.bad_commands = self.commands = 0
        self._done = -1  # index of the last tick that was simulated
        self._substep = 0
        self._clock_offset_s = wall() - time.monotonic()
        self._episode_began = 0.0
        self._deaf_until = 0.0

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set or the time is up."""
        tick_hz = self.options.rig.physics_hz / _SUBSTEPS
        began = reported = time.monotonic()
        reported_ticks, reported_sim = 0, 0
        self._episode_began = began
        try:
            for tick in Ticker(tick_hz).ticks(stop):
                self._take_commands(tick.deadline)
                self._advance(tick, 1.0 / tick_hz)
                if self.options.duration and tick.deadline - began >= self.options.duration:
                    break
                if tick.deadline - reported >= _REPORT_S:
                    span = tick.deadline - reported
                    rate = (self.ticks - reported_ticks) / span
                    pace = (self._substep - reported_sim) * self.rig.timestep_s / span
                    print(
                        f"rig: {rate:.0f} states/s, {pace:.3f} of real time, {self.slips} slips, "
                        f"episode {self.rig.episode}, {self.commands} commands "
                        f"({self.bad_commands} bad)",
                        flush=True,
                    )
                    reported, reported_ticks = tick.deadline, self.ticks
                    reported_sim = self._substep
        finally:
            self.close()
        span = max(time.monotonic() - began, 1e-9)
        print(
            f"rig: stopped after {span:.1f} s: {self.ticks} states "
            f"({self.ticks / span:.0f}/s), {self.slips} slips, {self.rig.episode + 1} episodes, "
            f"{self.commands} commands ({self.bad_commands} bad)",
            flush=True,
        )

    def close(self) -> None:
        """Close the sockets and the trace; safe to call twice."""
        self._context.destroy(linger=0)
        if self._trace:
            self._trace.close()
        if self._score:
            self._score.close()

    def _take_commands(self, monotonic_s: float) -> None:
        """Do what the commands that wait say; of those that move the arm only the newest."""
        newest: Command | None = None
        # A bounded number: a sender that floods cannot hold up the physics.
        for _ in range(2 * RIG_COMMAND.hwm):
            try:
                frames = self._commands.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                if len(frames) != 1:
                    raise ValueError("a command is one frame")
                command = decode_command(frames[0])
            except ValueError:
                self.bad_commands += 1
                continue
            self.commands += 1
            if command.kind == "reset":
                self._reset(command.seed, monotonic_s)
                newest = None  # meant for the episode that is over
            else:
                newest = command
        if newest is not None:
            try:
                self._do(newest, monotonic_s)
            except ValueError:
                self.bad_commands += 1
        every = 0.0 if self.options.judged else self.options.episode_s
        if every and monotonic_s - self._episode_began >= every:
            self._reset((self.rig.seed + 1) % 2**31, monotonic_s)

    def _do(self, command: Command, monotonic_s: float) -> None:
        if command.kind == "hold" or command.values is None:
            self.rig.hold()
            return
        if monotonic_s < self._deaf_until:
            return
        if self._score:
            self._score.moved(self.rig.time_s)
        if command.kind == "joints":
            self.rig.command_joints(command.values)
        else:
            self.rig.command_pose(command.values)

    def _reset(self, seed: int, monotonic_s: float) -> None:
        self.rig.reset(seed)
        self._episode_began = monotonic_s
        self._deaf_until = monotonic_s + _DEAF_S
        if self._score:
            self._score.begin()

    def _advance(self, tick: Tick, period_s: float) -> None:
        """Simulate up to a tick's deadline and publish the state reached.

        A little lost time is made up for in one go and one message; more than 0.1 s is left out
        and counted, as a device that was stopped would.
        """
        behind = tick.index - self._done
        if (behind - 1) * period_s > _MAX_BEHIND_S:
            self.slips += 1
            behind = 1
        self._done = tick.index
        offset = wall() - time.monotonic()
        if abs(offset - self._clock_offset_s) > _CLOCK_STEP_S:
            self._clock_offset_s = offset
        at = tick.deadline + self._clock_offset_s
        samples: list[tuple[float, float, float]] = []
        left = behind * _SUBSTEPS
        reading: Reading | None = None
        while left:
            # Up to the next sample, or to the tick's end.
            span = min(_SAMPLE_EVERY - self._substep % _SAMPLE_EVERY, left)
            self.rig.step(span)
            self._substep += span
            left -= span
            reading = None
            if self._substep % _SAMPLE_EVERY == 0:
                reading = self.rig.read()
                sampled_at = at - left * self.rig.timestep_s
                samples.append((sampled_at, reading.force_n, reading.distance_mm))
        reading = reading or self.rig.read()
        self._publish(at, reading, samples)
        if self._trace:
            self._trace.add(at, self.rig.joints_deg, reading, self.rig.episode, self.rig.seed)
        if self._score and (over := self._score.see(reading, self.rig.episode, self.rig.seed)):
            print(over.line(), flush=True)
            self._reset((self.rig.seed + 1) % 2**31, tick.deadline)

    def _publish(
        self, at: float, reading: Reading, samples: list[tuple[float, float, float]]
    ) -> None:
        rig = self.rig
        state = RigState(
            seq=self.ticks,
            run=self._run_id,
            time=at,
            sim_time_s=reading.time_s,
            episode=rig.episode,
            seed=rig.seed,
            config=rig.config,
            qpos=rig.data.qpos,
            pose=rig.pose,
            force_n=reading.force_n,
            samples=np.array(samples, dtype=np.float64),
        )
        # A PUB never waits: what a slow subscriber cannot take is dropped for that one.
        self._states.send_multipart([RIG_STATE.topic, encode_state(state)], zmq.NOBLOCK)
        self.ticks += 1


def main(options: ServerOptions) -> int:
    """Run the rig; the exit code: 0 after a clean stop, 2 when it could not start."""
    try:
        options.check()
        server = RigServer(options)
    except OptionError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 2
    except zmq.ZMQError as error:
        print(
            f"rig: cannot bind {address(options.host, options.state_port)} and "
            f"{options.command_port}: {error.strerror}; is another rig running? "
            "(--state-port, --command-port)",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        print(f"rig: cannot write the trace: {error}", file=sys.stderr)
        return 2
    with stopping() as stop:  # first: whoever reads the line may stop it at once
        print(
            f"rig: state at {address(options.host, options.state_port)}, commands at "
            f"{address(options.host, options.command_port)}, seed {options.seed}",
            flush=True,
        )
        server.run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(cli.parse(ServerOptions)))
