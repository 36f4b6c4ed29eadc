"""Episodes in processes of their own, each with a rig, a GL context and the policy."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from common.stopping import die_with_parent
from policies.base import DualRatePolicy, PolicyError, PolicySpec
from receiver.loading import PolicyOptions, load
from scripts.closed_loop.episode import EpisodeResult, run_episode
from scripts.closed_loop.results import Key
from scripts.closed_loop.rig import VirtualRig
from scripts.closed_loop.score import ScoreOptions
from sim.layout import RigConfig, TissueKind

__all__ = ["ORACLE", "Workers", "WorkersError", "load_policy"]

ORACLE = "oracle"
"""Instead of a checkpoint: the policy that knows where the port is."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told: plain values."""

    policy: str
    act_ms: float
    score: ScoreOptions
    tissue: TissueKind


class WorkersError(RuntimeError):
    """A worker that ended; one line."""


@dataclass(slots=True)
class _Mine:
    """What a worker keeps from episode to episode."""

    rig: VirtualRig
    policy: DualRatePolicy


_options: WorkerOptions | None = None
_mine: _Mine | None = None


def load_policy(path: str, rig: VirtualRig) -> DualRatePolicy:
    """The policy of a folder on one thread of the CPU, with a flow head or without; or the oracle.

    Raises:
        PolicyError: it cannot be loaded, or cannot be compared.
    """
    if path == ORACLE:
        from scripts.closed_loop.oracle import OraclePolicy

        return OraclePolicy(rig.rig)
    try:
        import torch

        from policies.flow import is_flow, load_flow
    except ModuleNotFoundError as error:
        raise PolicyError(f"{error.name} is missing: pip install '.[receiver]'") from None
    if is_flow(path):
        torch.set_num_threads(1)
        return load_flow(path, device="cpu")
    policy = load(PolicyOptions(path, "cpu", "auto", None, None, False, 1))
    if policy.spec.space == "pose_delta":
        raise PolicyError(
            f"{path}: the policy moves the tool by changes of its pose, and a queue of actions "
            "takes joints only"
        )
    return policy


class Workers:
    """A few processes that run episodes; use as a context."""

    def __init__(
        self,
        count: int,
        policy: str,
        act_ms: float,
        score: ScoreOptions,
        tissue: TissueKind = "regular",
    ) -> None:
        """Start none yet: the first episode does."""
        # A fresh interpreter for each: neither GL nor PyTorch survives a fork.
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(WorkerOptions(policy, act_ms, score, tissue),),
        )

    def __enter__(self) -> Workers:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave out what has not begun, and wait for what has."""
        self._pool.shutdown(cancel_futures=True)

    def spec(self) -> PolicySpec:
        """What the policy is; PolicyError, DriverError, WorkersError."""
        with _said():
            return self._pool.submit(_spec).result()

    def run(self, keys: Sequence[Key]) -> Iterator[EpisodeResult]:
        """The episodes as they end, in any order; whatever the policy raises, WorkersError."""
        with _said():
            jobs: list[Future[EpisodeResult]] = [self._pool.submit(_run, key) for key in keys]
            for job in as_completed(jobs):
                yield job.result()


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise WorkersError(
            "a worker ended by itself (out of memory?): try --workers 1; what is finished is kept"
        ) from None


def _begin(options: WorkerOptions) -> None:
    global _options  # noqa: PLW0603  a worker's own, set once
    # The one who started them decides when they end, also after a Ctrl+C that reached all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)  # however it ends: a worker holds nothing that could be lost
    os.environ["OMP_NUM_THREADS"] = "1"
    # Holds are what is studied: they are counted, not said.
    for noisy in ("serving", "senders"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    _options = options


def _own() -> _Mine:
    """This worker's rig and policy, made when first asked for, so that errors come back."""
    global _mine  # noqa: PLW0603
    if _mine is None:
        assert _options is not None
        rig = VirtualRig(RigConfig(tissue=_options.tissue), _options.score)
        _mine = _Mine(rig, load_policy(_options.policy, rig))
    return _mine


def _spec() -> PolicySpec:
    return _own().policy.spec


def _run(key: Key) -> EpisodeResult:
    mine, options = _own(), _options
    assert options is not None
    name, latency_ms, seed = key
    return run_episode(mine.rig, mine.policy, name, latency_ms, seed, options.act_ms)
