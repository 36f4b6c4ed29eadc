"""The queue against a plain model of its rules, the four aggregations against their shares."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.program import OptionError
from serving.action_queue import ActionQueue, Asking
from serving.aggregation import Aggregation, choose, names, register

SHARES = {
    "weighted_average": (0.3, 0.7),
    "latest_only": (0.0, 1.0),
    "average": (0.5, 0.5),
    "conservative": (0.7, 0.3),
}


@pytest.mark.parametrize("name", sorted(SHARES))
def test_aggregations_mix_in_their_shares(name: str) -> None:
    rng = np.random.default_rng(1)
    queued, new = rng.normal(size=(7, 6)), rng.normal(size=(7, 6))
    old_share, new_share = SHARES[name]
    np.testing.assert_allclose(
        choose(name).function(queued, new), old_share * queued + new_share * new, atol=1e-12
    )


def test_the_registry_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("someones_mixing")
    module.halfway = lambda queued, new: queued + 0.5 * (new - queued)  # type: ignore[attr-defined]
    module.one = lambda queued, new: new[0]  # type: ignore[attr-defined]
    module.broken = lambda queued, new: queued @ new  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones_mixing", module)
    monkeypatch.setattr(
        "serving.aggregation._KNOWN", dict(__import__("serving").aggregation._KNOWN)
    )
    assert choose("someones_mixing:halfway").function is module.halfway
    register("mine", uses_queued=False)(module.halfway)
    assert "mine" in names()
    assert choose("mine") == choose("someones_mixing:halfway")
    with pytest.raises(ValueError, match="already"):
        register("average")(module.halfway)
    for text, said in {
        "averge": "average, conservative, latest_only",
        "someones_mixing:missing": "cannot be imported",
        "no.such.module:f": "cannot be imported",
        "someones_mixing:one": "one row for each row",
        "someones_mixing:broken": "fails",
    }.items():
        with pytest.raises(OptionError, match=said):
            choose(text)


def chunk(value: float, rows: int) -> np.ndarray:
    return np.full((rows, 2), value)


def steps_of(queue: ActionQueue) -> list[int]:
    return queue._steps[queue._head :].tolist()


def test_executed_steps_are_discarded_overlapping_mixed_uncovered_kept() -> None:
    queue = ActionQueue(6, choose("weighted_average"))
    queue.merge(0, chunk(0.0, 6), measured_at=1.0, now=1.0)
    for _ in range(3):
        queue.pop()
    assert (queue.latest, steps_of(queue)) == (2, [3, 4, 5])
    merged = queue.merge(1, chunk(10.0, 4), measured_at=2.0, now=2.0)  # steps 1 to 4
    assert (merged.past, merged.mixed, merged.added) == (2, 2, 0)
    rows = [queue.pop() for _ in range(3)]
    assert [(row.step, row.action[0], row.measured_at) for row in rows if row] == [
        (3, pytest.approx(7.0), 1.0),  # 0.3 × 0 + 0.7 × 10, as old as the older
        (4, pytest.approx(7.0), 1.0),
        (5, 0.0, 1.0),  # not covered: kept, in order
    ]
    assert queue.pop() is None
    assert queue.gaps == 0


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SHARES)),
    events=st.lists(
        st.one_of(
            st.tuples(st.just("pop"), st.integers(1, 6), st.just(0)),
            st.tuples(st.just("merge"), st.integers(-4, 8), st.integers(1, 12)),
        ),
        max_size=25,
    ),
)
def test_merging_agrees_with_a_plain_model(name: str, events: list[tuple[str, int, int]]) -> None:
    old_share, new_share = SHARES[name]
    queue = ActionQueue(12, choose(name))
    model: dict[int, tuple[float, float]] = {}  # step → value, measured at
    latest, now, executed = -1, 0.0, []
    for what, first, rows in events:
        now += 1.0
        if what == "pop":
            for _ in range(first):
                row = queue.pop()
                assert (row is None) == (not model)
                if row is not None:
                    step = min(model)
                    value, measured_at = model.pop(step)
                    latest = step
                    assert (row.step, row.measured_at) == (step, measured_at)
                    assert row.action == pytest.approx([value, value])
                    executed.append(step)
        else:
            start = max(latest + first, 0)
            queue.merge(start, chunk(now, rows), measured_at=now, now=now)
            for step in range(start, start + rows):
                if step > latest and step in model:
                    value, measured_at = model[step]
                    kept_at = measured_at if name != "latest_only" else now
                    model[step] = (old_share * value + new_share * now, kept_at)
                elif step > latest:
                    model[step] = (now, now)
        assert len(queue) == len(model)
        assert steps_of(queue) == sorted(model)
        assert queue.latest == latest
    assert executed == sorted(set(executed)), "a step is executed once, in order"


def test_a_gap_is_skipped_and_counted() -> None:
    queue = ActionQueue(4)
    queue.merge(3, chunk(1.0, 2), 0.0, 0.0)
    row = queue.pop()
    assert row is not None and row.step == 3
    assert queue.gaps == 3
    queue.merge(2, chunk(2.0, 2), 0.0, 0.0)
    assert steps_of(queue) == [4], "steps before an executed one never come back"


def test_old_rows_do_not_go_into_the_mix_when_they_would_be_too_old_when_due() -> None:
    queue = ActionQueue(4, choose("average"), max_age_s=1.0, period_s=0.1)
    queue.merge(0, chunk(0.0, 4), measured_at=0.0, now=0.0)
    queue.merge(0, chunk(10.0, 4), measured_at=0.75, now=0.75)  # due at 0.85, 0.95, 1.05, 1.15
    rows = [queue.pop() for _ in range(4)]
    assert [(row.action[0], row.measured_at) for row in rows if row] == [
        (5.0, 0.0), (5.0, 0.0), (10.0, 0.75), (10.0, 0.75)
    ]  # fmt: skip


def test_angles_are_mixed_the_short_way_round() -> None:
    queue = ActionQueue(1, choose("average"), turns=np.array([True, False]))
    queue.merge(0, np.array([[170.0, 170.0]]), 0.0, 0.0)
    queue.merge(0, np.array([[-170.0, -170.0]]), 0.0, 0.0)
    row = queue.pop()
    assert row is not None
    assert row.action.tolist() == [180.0, 0.0]


def test_the_threshold_is_part_of_a_chunk_as_long_as_chunks_are() -> None:
    queue = ActionQueue(50, threshold=0.5)
    assert queue.wants_observation
    assert queue.capacity == 50
    queue.merge(0, chunk(0.0, 16), 0.0, 0.0)  # the policy gives 16 rows, whatever is asked for
    assert queue.capacity == 16
    wants = []
    while queue.pop():
        wants.append((len(queue), queue.wants_observation))
    assert [length for length, asks in wants if asks] == list(range(8, -1, -1))


def test_the_queue_is_bounded() -> None:
    queue = ActionQueue(4096)
    for first in range(0, 60_000, 3000):
        queue.merge(first, chunk(1.0, 4096), 0.0, 0.0)
    assert len(queue) <= 4096
    assert queue.peek().step == 0  # type: ignore[union-attr]


def test_clearing_keeps_the_count_of_steps() -> None:
    queue = ActionQueue(4)
    assert queue.observation_step == 0
    queue.merge(0, chunk(1.0, 4), 0.0, 0.0)
    queue.pop()
    queue.pop()
    queue.clear()
    assert (len(queue), queue.latest, queue.observation_step) == (0, 1, 1)
    queue.merge(1, chunk(1.0, 4), 0.0, 0.0)
    assert steps_of(queue) == [2, 3, 4]


def test_must_go_is_said_once_until_a_chunk_comes_and_again_when_none_does() -> None:
    asking = Asking(must_go_after_s=2.0, retry_s=0.5)
    assert asking.due(10.0)
    asking.asked(10.0)
    assert not asking.due(11.9)
    assert asking.due(12.0), "lost on the way: asked again"
    asking.asked(12.0)
    asking.answered()
    assert asking.due(12.1)
    asking.asked(12.1)
    asking.refused(12.2)
    assert not asking.due(12.6)
    assert asking.due(12.7), "refused: asked again soon, but not at once"


def test_a_custom_aggregation_that_changes_shape_later_is_an_error() -> None:
    queue = ActionQueue(3, Aggregation("odd", lambda queued, new: new[:1]))
    queue.merge(0, chunk(0.0, 3), 0.0, 0.0)
    with pytest.raises(ValueError, match="odd"):
        queue.merge(0, chunk(0.0, 3), 0.0, 0.0)
