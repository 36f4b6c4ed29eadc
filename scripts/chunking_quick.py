"""One setting in virtual time: the client's control loop and the server's queue, no socket.

The code that runs is the one that robots run with; only time, network and policy are models.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from scripts.chunking_model import Conditions, Outcome, Setting, jerk_rms, on_ticks
from scripts.network_lane import Lane, Network
from serving.aggregation import choose
from serving.body import BodyState, Seen
from serving.control_loop import ControlLoop
from serving.control_values import Arrival, LoopOptions
from serving.messages import Chunk, Observation
from serving.newest import Likeness, NewestSlot

__all__ = ["JOINTS", "Plan", "planned", "simulate"]

JOINTS = 6
_AMPLITUDE_DEG = 20.0
_PERIOD_S = 4.0
_WANDER_DEG = 0.5
_SPEED_DEG_S = 60.0
_STEP_DEG = 2.0
_CHUNK_BYTES = 200

Plan = Callable[[int, NDArray[np.float32], Random], NDArray[np.float32]]
"""(first step, state (S,), chance) → rows (H, S)."""


def planned(rows: int, fps: float) -> Plan:
    """A policy: a sine along every joint, and with each chunk a little beside the last one.

    The wandering (0.5 degrees, standard deviation) is what makes one chunk disagree with the one
    before, as chunks of learned policies do; without it every setting would move alike.
    """
    phases = np.arange(JOINTS) * 2 * math.pi / JOINTS

    def plan(first: int, state: NDArray[np.float32], chance: Random) -> NDArray[np.float32]:
        seconds = (first + np.arange(rows))[:, None] / fps
        way: NDArray[np.float64] = _AMPLITUDE_DEG * np.sin(
            2 * math.pi * seconds / _PERIOD_S + phases
        )
        beside = np.array([chance.gauss(0.0, _WANDER_DEG) for _ in range(len(state))])
        rows_32: NDArray[np.float32] = (way + beside).astype(np.float32)
        return rows_32

    return plan


@dataclass(slots=True)
class _Body:
    """An arm that is at once where it is told to be."""

    state_names: tuple[str, ...] = tuple(f"joint_{k}.pos" for k in range(1, JOINTS + 1))
    action_names: tuple[str, ...] = tuple(f"joint_{k}.pos" for k in range(1, JOINTS + 1))
    cameras: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    joints: NDArray[np.float64] = field(default_factory=lambda: np.zeros(JOINTS))
    now: float = 0.0
    told: list[tuple[float, NDArray[np.float64]]] = field(default_factory=list)

    def limiter(self, control_hz: float) -> StepLimiter:
        each = np.ones(JOINTS)
        step = min(_SPEED_DEG_S / control_hz, _STEP_DEG)
        return StepLimiter(
            -180 * each, 180 * each, step * each, 0.25 * _SPEED_DEG_S * each, each < 0
        )

    def open(self) -> None: ...

    def read(self) -> BodyState:
        return BodyState(self.joints, self.now)

    def seen(self) -> dict[str, Seen]:
        return {}

    def sensor(self, samples: int) -> None:
        return None

    def move(self, target: NDArray[np.float64]) -> None:
        self.joints = target.copy()
        self.told.append((self.now, self.joints))

    def hold(self) -> None:
        self.told.append((self.now, self.joints))

    def close(self) -> None: ...


class _World:
    """Server and network: what happens between control ticks, in the order of its times."""

    def __init__(
        self, plan: Plan, given: Conditions, observation_bytes: int, latency_s: float, seed: int
    ) -> None:
        self._plan, self._given, self._latency_s = plan, given, latency_s
        self._network = Network(given.delay_s, given.jitter_s, given.loss)
        self._up = Lane(Random(f"{seed}/up"), 1 << 40)
        self._down = Lane(Random(f"{seed}/down"), 1 << 40)
        self._chance = Random(f"{seed}/policy")
        self._payload = bytes(observation_bytes)
        self._slot = NewestSlot(Likeness(), 1.0)
        self._busy = False
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self.arrivals: list[Arrival] = []

    def run_until(self, now: float) -> list[Arrival]:
        """Let happen what happens up to `now`; the chunks that came."""
        while self._events and self._events[0][0] <= now:
            at, _, happen = heapq.heappop(self._events)
            happen(at)
        came, self.arrivals = self.arrivals, []
        return came

    def send(self, observation: Observation, now: float) -> None:
        """An observation sets out for the server."""

        def come(at: float) -> None:
            self._slot.offer(observation, at)
            self._predict(at)

        self._at(_arrival(self._up, self._payload, self._network, now), come)

    def _predict(self, now: float) -> None:
        if self._busy or not self._slot.filled:
            return
        self._busy = True
        seen = self._slot.take(now).observation
        rows = self._plan(seen.timestep, seen.state, self._chance)
        chunk = Chunk(seen.timestep, seen.timestamp, rows, inference_s=self._given.inference_s)

        def done(at: float) -> None:
            self._busy = False
            self._predict(at)

        def answer(at: float) -> None:
            size = _CHUNK_BYTES + rows.nbytes
            arrives = _arrival(self._down, bytes(size), self._network, at)
            self._at(arrives, lambda came: self.arrivals.append(Arrival(chunk, came)))

        self._at(now + self._given.inference_s, done)
        self._at(now + max(self._given.inference_s, self._latency_s), answer)

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, happen))


def _arrival(lane: Lane, payload: bytes, network: Network, now: float) -> float:
    """When the last byte of a message that sets out now comes."""
    lane.take(payload, network, now)
    arrives = now
    while (piece := lane.due(math.inf)) is not None:
        arrives = lane.next_at
        lane.sent(len(piece))
    return arrives


def simulate(
    setting: Setting,
    given: Conditions,
    seconds: float = 60.0,
    *,
    observation_bytes: int = 10_000,
    aggregation: str = "weighted_average",
    latency_s: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Run one setting for `seconds` of virtual time.

    `observation_bytes` is what an observation weighs on the wire: more segments, more losses.
    `latency_s` is the server's `--inference_latency`. Rates in virtual time are exact. Messages
    are handed over as over ZeroMQ: the next one does not wait for the last.
    """
    body = _Body()
    options = LoopOptions(
        fps=given.fps,
        actions_per_chunk=setting.actions_per_chunk,
        chunk_size_threshold=setting.chunk_size_threshold,
        aggregation=choose(aggregation),
        max_input_age_s=math.inf,
    )
    loop = ControlLoop(body, options)
    plan = planned(setting.actions_per_chunk, given.fps)
    world = _World(plan, given, observation_bytes, latency_s, seed)
    ages: list[float] = []
    moved = empty = 0
    start = 1.0
    for tick in range(round(seconds * given.fps)):
        body.now = start + tick / given.fps
        step = loop.step(body.now, 1, world.run_until(body.now))
        if step.observation is not None:
            world.send(step.observation, body.now)
        if step.row is not None:
            moved += 1
            ages.append(body.now - step.row.measured_at)
        elif moved:  # what comes before the first chunk is the start, not the setting's fault
            empty += 1
    trips = loop.counters.round_trips
    at = np.array([when for when, _ in body.told])
    positions = np.array([where for _, where in body.told])
    return Outcome(
        setting,
        empty=empty / (moved + empty) if moved else 1.0,
        jerk=jerk_rms(on_ticks(at, positions, 1 / given.fps), 1 / given.fps),
        rate_hz=given.fps,
        answer_ms=1e3 * float(np.median(trips)) if trips else math.nan,
        age_ms=1e3 * float(np.median(ages)) if ages else math.nan,
        chunks=loop.counters.chunks,
        seconds=seconds,
    )
