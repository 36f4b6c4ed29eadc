"""The folded fast parts at work: once an update what may be done then, the rest at every tick."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from policies.qwen_vla.captured import Captured, Lane
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.fusions import Terms
from policies.qwen_vla.sensor_encoder import resample

__all__ = ["FastRunner", "Recorded", "StaticRun"]

_log = logging.getLogger(__name__)


class StaticRun:
    """One pass between buffers that stay where they are, so that a GPU can replay it as a graph.

    Args:
        run: terms and window to delta.
        terms: as `run` takes them; only shapes count here.
        window: the shape of the window, (T, channels).
        lane: where it runs. Calls are made inside `lane.entered()`.
    """

    def __init__(
        self,
        run: Callable[[Terms, Tensor], Tensor],
        terms: Terms,
        window: torch.Size,
        lane: Lane,
    ) -> None:
        self._lane = lane
        self._terms = tuple(torch.empty_like(term) for term in terms)
        self._window = torch.zeros(window, device=lane.device)
        # Only from pinned memory does a copy to a GPU return before it is done.
        self._pinned = torch.zeros(window, pin_memory=lane.device.type == "cuda")
        self._result: Tensor | None = None
        self._work = Captured(lambda: run(self._terms, self._window).float(), lane, "the fast half")

    def fits(self, terms: Terms) -> bool:
        """Whether terms have the shapes that this was made for."""
        return [term.shape for term in terms] == [term.shape for term in self._terms]

    def set_terms(self, terms: Terms) -> None:
        """Take the terms of another update."""
        for place, term in zip(self._terms, terms, strict=True):
            place.copy_(term)

    def __call__(self, window: Tensor) -> Tensor:
        """The delta (rows, columns) on the CPU, the caller's own, for a window on the CPU."""
        self._pinned.copy_(window)
        self._window.copy_(self._pinned, non_blocking=True)
        delta = self._work()
        if self._result is None:
            pinned = delta.device.type == "cuda"
            self._result = torch.empty(delta.shape, dtype=delta.dtype, pin_memory=pinned)
        self._result.copy_(delta, non_blocking=True)
        self._lane.finish()
        return self._result.clone()


class Recorded:
    """One pass as a recorded list of operations, run without Python in between.

    A pass is some 150 small operations. Called one by one, each gives Python's lock back, and must
    wait for it again where other threads want it, too; a recorded list runs without the lock.
    Recorded by tracing, which is right because what is run depends on shapes alone. Weights in a
    processor's own order cannot be recorded: a large policy runs operation by operation, where
    each takes long enough for the lock not to matter.

    Args:
        run: terms and window to delta.
        terms: as `run` takes them; only shapes count here.
        window: a window, (T, channels).
    """

    def __init__(
        self, run: Callable[[Terms, Tensor], Tensor], terms: Terms, window: Tensor
    ) -> None:
        self._run = run
        self._shapes = [term.shape for term in (window, *terms)]
        self._recorded: Callable[..., Tensor] | None = None
        try:
            with warnings.catch_warnings():
                # Tracing is deprecated in favour of compiling, for which users need a compiler.
                warnings.simplefilter("ignore")
                trace: Any = torch.jit.trace
                recorded = trace(
                    lambda window, *terms: run(terms, window), (window, *terms), check_trace=False
                )
            # The second run is as all others will be: optimised for what the first one met.
            results = [recorded(window, *terms) for _ in range(2)]
            if all(torch.equal(result, run(terms, window)) for result in results):
                self._recorded = recorded
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            _log.debug("the fast half runs operation by operation: %.200s", reason)

    def fits(self, terms: Terms, window: Tensor) -> bool:
        """Whether these have the shapes that this was made for."""
        return [term.shape for term in (window, *terms)] == self._shapes

    def __call__(self, terms: Terms, window: Tensor) -> Tensor:
        """The delta (rows, columns)."""
        if self._recorded is None:
            return self._run(terms, window)
        return self._recorded(window, *terms)


class FastRunner:
    """The fast half of a policy; for one thread.

    Whether features are those of the tick before is seen by their identity: an update's features
    are never changed, and are kept here until others come.

    Args:
        folded: the fast parts.
    """

    def __init__(self, folded: FoldedFast) -> None:
        self.device = folded.packing.device
        self._folded = folded
        self._sensor = folded.config.sensor
        # An action does not queue behind an update.
        self._lane = Lane(self.device, first=True)
        self._features: Any = None
        self._terms: Terms = ()
        self._delta: Tensor | None = None
        self._static: StaticRun | None = None
        self._recorded: Recorded | None = None

    @property
    def goal_readout(self) -> nn.Module | None:
        """What reads a goal out of features, on the CPU in float32; None without one."""
        return self._folded.goal_readout

    @torch.inference_mode()
    def __call__(self, features: Tensor, window: Tensor | None) -> Tensor:
        """Compute a chunk's delta.

        Args:
            features: (1, N, vl_features), ready for use on any stream.
            window: (1, T, channels) float32 on the CPU; None with fusion `none`.

        Returns:
            (rows, columns) float32 on the CPU, the caller's own.
        """
        with self._lane.entered():
            if features is not self._features:
                self._take(features)
            if self._delta is not None or window is None or self._sensor is None:
                assert self._delta is not None  # without a window it was finished by the update
                return self._delta.clone()
            rows = resample(window, self._sensor.window)[0]
            if self._static is not None:
                return self._static(rows)
            if self._recorded is None or not self._recorded.fits(self._terms, rows):
                self._recorded = Recorded(self._folded.run, self._terms, rows)
            return self._recorded(self._terms, rows)

    def _take(self, features: Tensor) -> None:
        self._features = None  # if this fails, nothing of another update is used in its place
        terms, delta = self._folded.prepare(features)
        self._delta = None if delta is None else delta.float().cpu()
        if self.device.type == "cuda" and delta is None and self._sensor is not None:
            if self._static is None or not self._static.fits(terms):
                size = torch.Size((self._sensor.window, self._sensor.channels))
                self._static = StaticRun(self._folded.run, terms, size, self._lane)
            self._static.set_terms(terms)
        self._terms, self._features = terms, features
