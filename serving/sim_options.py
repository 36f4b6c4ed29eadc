"""The options of the simulation client: those of the robot client, and what a simulator adds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from common.program import OptionError, check_number
from serving.client_options import ClientOptions, Switch
from serving.control_values import LoopOptions

__all__ = ["SimClientConfig"]


@dataclass(frozen=True)
class SimClientConfig(ClientOptions):
    """Run a policy from a server in a simulator. The simulator's own options are --env.KEY VALUE.

    The trained policy on this project's rig, with default options:
    --env.type insertion --policy_type qwen_vla --pretrained_name_or_path assets/insertion-policy
    Other simulators: --env.type pusht; --env.type libero --env.task libero_10;
    --env.type gym --env.task ID.
    --config FILE reads options from a YAML file, the simulator's from its `env:` map.
    """

    fps: float = 0.0
    """Control ticks a second; 0: as many as the environment's own."""
    n_episodes: int = 10
    """How many episodes to run."""
    seed: int = 0
    """Of the first episode; each one after it has the next."""
    lockstep: Switch = False
    """The simulation waits while the policy thinks: a baseline without any latency. The next chunk
    is asked for when the last is used up; --chunk_size_threshold does not count."""
    clock: Literal["wall", "stretched"] = "wall"
    """What the simulation does where it is slower than --fps: on the wall clock it loses steps; a
    stretched clock passes slower, and answers come as late by it as they did by the wall clock."""
    sessions: Literal["auto", "episode", "run"] = "auto"
    """Begin a session with the server for each episode, or one for the whole run; auto is one for
    each episode, but with LeRobot's server, which would load the policy every time."""
    video: Path | None = None
    """Write a video of each episode (mp4) into this folder."""
    env: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    """The simulator's options, without the dots: {"type": "pusht"}."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        if self.fps:
            super().check()
        else:
            replace(self, fps=1000.0).check()  # low_pass_hz is looked at when the rate is known
        check_number("--n_episodes", self.n_episodes, 1, 1_000_000)
        check_number("--seed", self.seed, 0, 2**31 - 1 - self.n_episodes)
        if self.lockstep and self.split:
            raise OptionError("--lockstep waits for a policy on the server: leave out --split")
        if self.lockstep and self.clock != "wall":
            raise OptionError("--lockstep has a clock of its own: leave out --clock")

    def at(self, fps: float) -> SimClientConfig:
        """The same at a control rate that is known; OptionError where it does not fit."""
        known = replace(self, fps=fps)
        known.check()
        return known

    def episode_loop(self, task: str, match_names: bool) -> LoopOptions:
        """What one episode's control loop is run with; `task` is the environment's."""
        return replace(
            self.loop(),
            task=self.task or task,
            match_names=match_names,
            lockstep=self.lockstep,
            chunk_size_threshold=0.0 if self.lockstep else self.chunk_size_threshold,
        )
