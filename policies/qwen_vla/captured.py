"""Work whose tensors stay where they are, run again and again: on a GPU as one captured graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "Lane"]

_log = logging.getLogger(__name__)

# Libraries choose and allocate what they need in the first runs, which a capture would not allow.
WARM_UP_RUNS = 3
# CUDA's lowest priority; higher ones are negative.
LOWEST = 0


class Lane:
    """Where work runs: a stream of its own on a GPU, of low priority; nothing on a CPU.

    Whatever waits on a stream of higher priority gets the next free units of the GPU first, between
    two pieces of one of our kernels, so that an action need not wait for an update.

    Args:
        device: the model's.
        first: highest priority instead, for work that others must not delay, of less than a
            millisecond.
    """

    def __init__(self, device: torch.device, *, first: bool = False) -> None:
        self.device = device
        self.stream: Any = None
        self.pool: Any = None
        if device.type == "cuda":
            cuda: Any = torch.cuda
            highest = cuda.Stream.priority_range()[1]
            self.stream = cuda.Stream(device, priority=highest if first else LOWEST)
            # Graphs of one lane never run at once: they may share the memory of what is on the way.
            self.pool = torch.cuda.graph_pool_handle()
            # Waits asleep, without Python's lock; waking up would be a good part of little work.
            self._done = cuda.Event(blocking=not first)

    def entered(self) -> AbstractContextManager[Any]:
        """Let what is called inside run on the lane's stream, after all that was asked for so far.

        Weights, for instance, were put in their places on the caller's stream.
        """
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self.stream)

    def finish(self) -> None:
        """Wait until everything given to the lane is done; the one wait of an update."""
        if self.stream is not None:
            self._done.record(self.stream)
            self._done.synchronize()


class Captured:
    """A function without arguments that reads and writes tensors that stay where they are.

    On a GPU its kernels are captured at the first call and replayed from then on, with one launch
    for all. The result lies in the same place every time. Where it cannot be captured, one line
    says so, and it runs as it is.

    Args:
        function: allocates what it likes; reads nothing back to the host.
        lane: where it runs. Calls are made inside `lane.entered()`.
        name: for the log.
    """

    def __init__(self, function: Callable[[], Tensor], lane: Lane, name: str) -> None:
        self._function = function
        self._lane = lane
        self._name = name
        self._graph: Any = None
        self._result: Tensor | None = None
        self._plain = lane.stream is None

    def __call__(self) -> Tensor:
        """Run once more; on a GPU the result is there once the lane has finished."""
        if self._plain:
            return self._function()
        if self._graph is None:
            try:
                self._capture()
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                _log.warning(
                    "%s cannot be captured as a graph, it runs slower: %.200s", self._name, reason
                )
                self._plain, self._graph = True, None
                return self._function()
        self._graph.replay()
        assert self._result is not None
        return self._result

    def _capture(self) -> None:
        for _ in range(WARM_UP_RUNS):
            self._function()
        self._lane.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Only this thread is watched: another one acts meanwhile, and may allocate or wait.
        with torch.cuda.graph(
            graph,
            pool=self._lane.pool,
            stream=self._lane.stream,
            capture_error_mode="thread_local",
        ):
            self._result = self._function()
        self._graph = graph
