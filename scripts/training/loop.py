"""The loop that every stage of training runs: down the loss, from where it was left."""

from __future__ import annotations

import fcntl
import math
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Report", "Schedule", "batch_at", "descend", "learning_rate", "load_state", "save_state"]

Drawn = TypeVar("Drawn")

Report = Callable[[int, dict[str, float]], None]
"""Takes the steps done, and figures by name."""

_NO_STATE: tuple[type[Exception], ...] = (RuntimeError, LookupError, TypeError, ValueError)
_NO_STATE += (AttributeError, EOFError, pickle.UnpicklingError)
_EVERY = 250
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Schedule:
    """How one stage is trained."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    decay: float = 0.02

    def at(self, step: int) -> float:
        """The learning rate of a step: warm-up, then a cosine down to a hundredth."""
        return learning_rate(step, self.steps, self.warmup, self.rate)


def learning_rate(step: int, steps: int, warmup: int, rate: float) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    if step < warmup:
        return rate * (step + 1) / warmup
    part = (step - warmup) / max(steps - warmup, 1)
    return rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


def batch_at(step: int, count: int, size: int) -> Tensor:
    """The indices (size,) of a step: each pass over all `count` is in another order.

    A function of the step alone, so that training that was stopped goes on as if it had not been.
    """
    places = range(step * size, (step + 1) * size)
    orders = {
        number: torch.randperm(count, generator=torch.Generator().manual_seed(number))
        for number in {place // count for place in places}
    }
    return torch.stack([orders[place // count][place % count] for place in places])


def descend(
    model: nn.Module,
    schedule: Schedule,
    draw: Callable[[int], Drawn],
    loss_of: Callable[[int, Drawn], Tensor],
    judge: Callable[[], dict[str, float]],
    path: Path,
    report: Report,
    every: int = _EVERY,
) -> None:
    """Train from where `path` was left, by AdamW (arXiv 1711.05101) with clipped gradients.

    Args:
        model: whose parameters are trained, those that require gradients.
        schedule: how long, and at which rates.
        draw: what a step learns from. A function of the step alone, so that training goes on as if
            it had not stopped; called in a thread of its own, a step ahead.
        loss_of: the loss of a step, for what was drawn.
        judge: figures on what is not trained on.
        path: of the state; written before every report.
        report: called every so many steps, and after the last, with the mean loss since the one
            before, the figures, and `samples_per_s`.
        every: that many.

    Raises:
        ValueError: the state in `path` is of something else, or is being trained by another
            process; or the loss is no number.
        OSError: the state cannot be written.
    """
    with _alone(path):
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, schedule.rate, weight_decay=schedule.decay)
        begin = load_state(path, model, optimizer)
        running, since, began = 0.0, begin, time.monotonic()
        for step, drawn in _ahead(draw, begin, schedule.steps):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
            loss = loss_of(step, drawn)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
            optimizer.step()
            running += loss.item()
            done = step + 1
            if done % every == 0 or done == schedule.steps:
                # Before it is written: what was saved last can still be gone on from.
                if not math.isfinite(running):
                    raise ValueError(
                        f"the loss is no number by step {done}: lower the learning rate"
                    )
                save_state(path, model, optimizer, done)
                pace = (done - since) * schedule.batch / (time.monotonic() - began)
                mean = running / (done - since)
                report(done, {"loss": mean, **judge(), "samples_per_s": pace})
                running, since, began = 0.0, done, time.monotonic()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep another process from training the same state: it would be a mixture of both."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            # Held until the file is closed, also by a process that is killed.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path}: another training is at work on it; stop that first, or give another "
                "--work folder"
            ) from None
        yield


def _ahead(draw: Callable[[int], Drawn], begin: int, steps: int) -> Iterator[tuple[int, Drawn]]:
    """Each step with what is drawn for it, drawn while the one before is learned from."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(draw, begin) if begin < steps else None
        for step in range(begin, steps):
            assert coming is not None
            drawn = coming.result()
            if step + 1 < steps:
                coming = pool.submit(draw, step + 1)
            yield step, drawn


def save_state(path: Path, model: nn.Module, optimizer: Any, step: int) -> None:
    """Write everything that training goes on from, whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, draft)
    draft.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: Any) -> int:
    """The step to go on from; 0 where nothing was trained yet.

    Raises:
        ValueError: what is there is no such state, or that of another model.
    """
    if not path.exists():
        return 0
    try:
        # Onto the CPU: it may have been written on a device that is not here.
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except _NO_STATE:
        raise ValueError(
            f"{path}: not what a training with these options left; give another --work folder, or "
            "remove the file to begin again"
        ) from None
