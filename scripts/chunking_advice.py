"""Which chunk length and threshold to use, and what is wrong with the conditions, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.chunking_model import Conditions, Outcome, answer_s, reserve_s, span_s, speed_ratio
from scripts.network_lane import MIN_RTO_S

__all__ = ["MOST_DELAY_S", "MOST_EMPTY", "MOST_INFERENCE_S", "Advice", "advise", "missed_targets"]

MOST_DELAY_S = 0.05
MOST_INFERENCE_S = 0.1
RATE_SHARE = 0.02
"""Targets on a local network: one-way delay, one prediction, how close the rate comes to fps."""
MOST_EMPTY = 0.001
"""Share of ticks without an action that passes for none: one tick in 30 s at 30 Hz."""
_ALIKE = 1.1


@dataclass(frozen=True, slots=True)
class Advice:
    """What to use.

    Attributes:
        best: how the recommended setting did; None where nothing moved at all.
        words: why that one, in sentences.
        warnings: what is wrong with it or with the conditions, one line each.
    """

    best: Outcome | None
    words: str
    warnings: tuple[str, ...]


def needed_s(given: Conditions) -> float:
    """The reserve that outlasts what a network does now and then: jitter, one lost segment."""
    return 2 * given.jitter_s + (MIN_RTO_S if given.loss > 0 else 0.0)


def advise(outcomes: Sequence[Outcome], given: Conditions) -> Advice:
    """Weigh the outcomes of a sweep.

    First, settings whose queue never ran dry, with a reserve on paper that outlasts jitter and a
    lost segment (a short measurement may not have seen one). Among these the least product of
    reaction time and jerk: what is twice as quick may be up to twice as rough. Of those within a
    tenth of the least, which a measurement hardly tells apart, the quickest. Where no setting
    keeps the queue filled, the one that was empty least.
    """
    moved = [outcome for outcome in outcomes if outcome.chunks and outcome.empty < 1.0]
    missed = missed_targets(moved, given)
    if not moved:
        return Advice(None, "No setting moved the robot: look at the server's output.", missed)
    filled = [outcome for outcome in moved if outcome.empty <= MOST_EMPTY]
    safe = [o for o in filled if reserve_s(o.setting, given) >= needed_s(given)]
    if safe or filled:
        least = min(map(_quick_and_smooth, safe or filled))
        alike = [o for o in safe or filled if _quick_and_smooth(o) <= _ALIKE * least]
        best = min(alike, key=lambda outcome: outcome.reaction_ms)
        words = _why(best, given, len(safe or filled), len(moved))
        if not safe:
            missed += (
                f"no setting has the reserve that outlasts {_asked_of(given)}: expect the queue "
                "to run dry now and then; make chunks longer or the answer quicker",
            )
    else:
        best = min(moved, key=lambda outcome: (outcome.empty, outcome.reaction_ms))
        words = (
            f"Every setting ran dry; {_name(best)} did least, with no action for "
            f"{best.empty:.1%} of the ticks. An answer takes {1e3 * answer_s(given):.0f} ms on "
            "paper: make inference or the network quicker, or the chunks longer."
        )
    return Advice(best, words, missed)


def _quick_and_smooth(outcome: Outcome) -> float:
    return outcome.reaction_ms * max(outcome.jerk, 1e-9)


def _name(outcome: Outcome) -> str:
    setting = outcome.setting
    return (
        f"--actions_per_chunk {setting.actions_per_chunk} "
        f"--chunk_size_threshold {setting.chunk_size_threshold:g}"
    )


def _asked_of(given: Conditions) -> str:
    parts = [f"{2e3 * given.jitter_s:.0f} ms of jitter there and back"] if given.jitter_s else []
    parts += [f"a lost segment ({1e3 * MIN_RTO_S:.0f} ms)"] if given.loss else []
    return " and ".join(parts) or "the answer"


def _why(best: Outcome, given: Conditions, good: int, tried: int) -> str:
    rows = best.setting.actions_per_chunk
    return (
        f"Use {_name(best)}. {good} of {tried} settings kept the queue filled with enough in "
        f"reserve; of these it reacts soonest among the best in reaction time times jerk: what "
        f"happens shows in the motion after about {best.reaction_ms:.0f} ms at worst, and the RMS "
        f"jerk is {best.jerk:,.0f} units/s³. A chunk lasts {1e3 * span_s(rows, given.fps):.0f} ms, "
        f"{speed_ratio(rows, given.fps, given.inference_s):.1f} times as long as its inference; "
        f"{1e3 * reserve_s(best.setting, given):.0f} ms of it are left when the next one comes. "
        "Longer chunks are smoother and answer later; a higher threshold asks the server more "
        "often."
    )


def missed_targets(outcomes: Sequence[Outcome], given: Conditions) -> tuple[str, ...]:
    """A line for each target of a local network that is not met."""
    lines = []
    if given.delay_s >= MOST_DELAY_S:
        lines.append(
            f"the one-way delay is {1e3 * given.delay_s:.0f} ms, the target is below "
            f"{1e3 * MOST_DELAY_S:.0f}: put the server nearer, on a cable"
        )
    if given.inference_s >= MOST_INFERENCE_S:
        lines.append(
            f"inference takes {1e3 * given.inference_s:.0f} ms, the target is below "
            f"{1e3 * MOST_INFERENCE_S:.0f}: a faster accelerator, fewer steps, or a smaller policy"
        )
    slow = [o for o in outcomes if not abs(o.rate_hz / given.fps - 1) <= RATE_SHARE]
    if slow:
        worst = max(slow, key=lambda outcome: abs(outcome.rate_hz / given.fps - 1))
        lines.append(
            f"{len(slow)} of {len(outcomes)} settings missed {given.fps:g} Hz by over "
            f"{RATE_SHARE:.0%}, the worst with {worst.rate_hz:.1f} Hz ({_name(worst)}): the "
            "robot's computer is too busy"
        )
    longest = max((outcome.setting.actions_per_chunk for outcome in outcomes), default=0)
    ratio = speed_ratio(longest, given.fps, given.inference_s) if longest else math.inf
    if ratio < 1:
        lines.append(
            f"even {longest} rows last less long than their inference (ratio {ratio:.2f}): no "
            "setting can keep the robot moving"
        )
    return tuple(lines)
