"""A sender's offset on simulated links and simulated time."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock_offset import ClockOffset
from common.delay_envelope import Envelope

EPOCH = 1.7e9  # the size of real stamps, with their rounding
Delays = Callable[[np.random.Generator, int], np.ndarray]
Offset = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Link:
    """A link's delays: at least `least_s`, and on average about `mean_s` more."""

    kind: str
    mean_s: float
    least_s: float = 0.0002

    def delays(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if self.kind == "exponential":
            return self.least_s + rng.exponential(self.mean_s, count)
        slow = rng.random(count) < 0.3
        return self.least_s + np.where(slow, 3.0 * self.mean_s, 0.1 * self.mean_s) * rng.uniform(
            0.9, 1.1, count
        )


LINKS = [Link(kind, mean_s) for kind in ("exponential", "bimodal") for mean_s in (1e-4, 5e-3, 0.05)]
FAST = Link("exponential", 0.002)


class Session:
    """Messages of a sender whose clock is behind ours by `offset(t)`; one in twenty is lost."""

    def __init__(
        self,
        link: Link,
        offset: Offset,
        seconds: float = 60.0,
        rate_hz: float = 60.0,
        seed: int = 1,
    ) -> None:
        rng = np.random.default_rng(seed)
        at = np.arange(int(seconds * rate_hz)) / rate_hz
        self.at = at[rng.random(len(at)) >= 0.05]
        arrivals = self.at + link.delays(rng, len(self.at))
        self.arrivals = np.maximum.accumulate(arrivals)  # in order, as on a socket
        self.offset = offset
        self.stamps = EPOCH + self.at - offset(self.at)
        self.exchanges: list[tuple[float, float, float, float]] = []

    def exchange(self, there: Link, back: Link, every_s: float = 0.5, seed: int = 9) -> None:
        """Add exchanges of timestamps."""
        rng = np.random.default_rng(seed)
        t0 = np.arange(0.2, self.at[-1] - 1.0, every_s)
        t1 = t0 + there.delays(rng, len(t0))
        t3 = t1 + back.delays(rng, len(t0))
        up, down = t1 - (t0 - self.offset(t0)), t1 - (t3 - self.offset(t3))
        rows = zip(t3, 0.5 * (up + down), up - down, EPOCH + t1, strict=True)
        self.exchanges = [tuple(map(float, row)) for row in rows if row[2] >= 0]  # type: ignore[misc]

    def run(self, estimator: ClockOffset) -> tuple[np.ndarray, np.ndarray]:
        """What was believed and the estimate's error in seconds, after each message."""
        believed, errors, waiting = [], [], sorted(self.exchanges, reverse=True)
        offsets = self.offset(self.arrivals)
        for stamp, arrival, offset in zip(self.stamps, self.arrivals, offsets, strict=True):
            while waiting and waiting[-1][0] <= arrival:
                estimator.exchanged(*waiting.pop()[1:])
            believed.append(estimator.update(float(stamp), float(EPOCH + arrival)))
            assert estimator.offset_s is not None
            errors.append(estimator.offset_s - offset)
        return np.array(believed), np.array(errors)

    def mean_errors(self) -> np.ndarray:
        """The same of the mean of the first 50, which existing rigs use."""
        differences = EPOCH + self.arrivals - self.stamps
        return np.mean(differences[:50]) - self.offset(self.arrivals)


def drifting(offset_s: float, drift: float = 0.0) -> Offset:
    return lambda t: offset_s + drift * t


def set_at(moment: float, by_s: float, drift: float = 0.0) -> Offset:
    """A clock that is set forward: then it is less far behind."""
    return lambda t: 2.0 + drift * t - np.where(t >= moment, by_s, 0.0)


def p95(errors: np.ndarray) -> float:
    return float(np.percentile(np.abs(errors), 95))


@pytest.mark.parametrize("link", LINKS, ids=str)
@pytest.mark.parametrize(("offset_s", "drift"), [(0.0123, 1e-4), (-3600.5, -1e-4), (1.6e9, 0.0)])
def test_one_way(link: Link, offset_s: float, drift: float) -> None:
    session = Session(link, drifting(offset_s, drift), seconds=100.0)
    believed, errors = session.run(estimator := ClockOffset())
    assert believed.all()
    assert (estimator.steps, estimator.refused) == (0, 0)
    # The least delay, one way cannot know.
    rest, mean_rest = (p95(e[50:]) - link.least_s for e in (errors, session.mean_errors()))
    assert rest < 0.3 * mean_rest
    assert p95(errors[1000:]) < link.least_s + 0.2 * link.mean_s + 1e-5
    assert not estimator.two_way
    assert estimator.delay_s is None


def test_the_drift_is_found() -> None:
    for drift in (1e-4, -1e-4, 4e-4):
        session = Session(FAST, drifting(0.5, drift), seconds=120.0)
        estimator = ClockOffset()
        session.run(estimator)
        last = session.stamps[-1]
        ahead = estimator.to_local(last + 10.0) - estimator.to_local(last)
        assert ahead - 10.0 == pytest.approx(10.0 * drift, abs=1.5e-4)


@pytest.mark.parametrize("link", LINKS, ids=str)
def test_two_way_takes_the_least_delay_out(link: Link) -> None:
    far = Link(link.kind, link.mean_s, least_s=0.02)
    session = Session(far, drifting(0.5, 1e-4), seconds=100.0)
    _, one_way = session.run(ClockOffset())
    session.exchange(far, far)
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.two_way
    assert believed.all()
    assert estimator.steps == 0
    assert p95(errors[1000:]) < 1e-4 + 0.07 * link.mean_s
    assert p95(one_way[1000:]) > 0.019
    assert estimator.delay_s == pytest.approx(0.02, abs=1e-3 + 0.2 * link.mean_s)


def test_two_way_is_off_by_half_of_what_the_ways_differ() -> None:
    session = Session(Link("exponential", 0.002, 0.012), drifting(0.5))
    session.exchange(Link("exponential", 0.002, 0.012), Link("exponential", 0.002, 0.002))
    _, errors = session.run(ClockOffset())
    assert np.median(errors[1000:]) == pytest.approx(0.005, abs=0.0005)


def test_one_way_again_when_exchanges_stop() -> None:
    far = Link("exponential", 0.001, 0.02)
    session = Session(far, drifting(0.5), seconds=100.0)
    session.exchange(far, far)
    session.exchanges = [e for e in session.exchanges if e[0] < 30.0]
    _, errors = session.run(estimator := ClockOffset())
    at = session.arrivals
    assert np.abs(errors[(at > 10) & (at < 55)]).max() < 0.001
    assert errors[at > 65].min() > 0.019
    assert not estimator.two_way
    assert estimator.steps == 0


@pytest.mark.parametrize("wrong_s", [30.0, -30.0, 0.8, -0.02])
def test_exchanges_of_another_clock_are_not_used(wrong_s: float) -> None:
    session = Session(FAST, drifting(0.5))
    session.exchange(FAST, FAST)
    session.exchanges = [(t3, o - wrong_s, d, at) for t3, o, d, at in session.exchanges]
    believed, errors = session.run(estimator := ClockOffset())
    assert believed.all()
    assert not estimator.two_way
    assert np.abs(errors[100:]).max() < 0.003


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("link", LINKS, ids=str)
@pytest.mark.parametrize("by_s", [0.5, -0.5])
@pytest.mark.parametrize("rate_hz", [30.0, 100.0])
def test_a_step_of_half_a_second(link: Link, by_s: float, rate_hz: float, two_way: bool) -> None:
    session = Session(link, set_at(30.0, by_s, 1e-4), 40.0, rate_hz)
    if two_way:
        session.exchange(link, link)
    _, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 1
    assert np.abs(errors[session.arrivals > 32.0]).max() < max(0.003, 2 * link.mean_s)
    assert np.abs(session.mean_errors()[-1]) > 0.3


@pytest.mark.parametrize("by_s", [0.02, -0.02, 0.6, -0.6, 7200.0, -7200.0, -1.6e9])
@pytest.mark.parametrize("two_way", [False, True])
def test_a_clock_that_is_set(by_s: float, two_way: bool) -> None:
    session = Session(FAST, set_at(30.0, by_s))
    if two_way:
        session.exchange(FAST, FAST)
    said: list[float] = []
    estimator = ClockOffset()
    estimator.was_set = said.append  # type: ignore[method-assign]
    believed, errors = session.run(estimator)
    assert estimator.steps == 1
    assert said == [pytest.approx(by_s, abs=0.01)]
    at = session.arrivals
    between = (session.at >= 30.0) & (at < 30.1)
    late = -10 < by_s < 0.5  # or these messages are just late: believed, not for the clock
    assert believed[between].all() if late else not believed[between].any()
    assert believed[at > 32.0].all()
    assert np.abs(errors[at > 32.0]).max() < 0.003


def test_exchanges_find_a_step_that_delays_hide() -> None:
    link = Link("exponential", 0.05)
    session = Session(link, set_at(60.0, -0.1), 80.0, rate_hz=30.0)
    session.exchange(link, link, every_s=0.25)
    _, errors = session.run(estimator := ClockOffset())
    assert estimator.steps >= 1
    assert np.abs(errors[session.arrivals > 70.0]).max() < 0.03


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("kind", ["exponential", "bimodal"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_congestion_is_no_step(kind: str, seed: int, two_way: bool) -> None:
    link = Link(kind, 0.003)
    session = Session(link, drifting(0.5), 60.0, 100.0, seed)
    slow = (session.at >= 30.0) & (session.at < 35.0)
    delays = Link(kind, 0.03).delays(np.random.default_rng(seed), int(slow.sum()))
    session.arrivals[slow] = session.at[slow] + delays
    session.arrivals = np.maximum.accumulate(session.arrivals)
    if two_way:
        session.exchange(link, link)
    believed, errors = session.run(estimator := ClockOffset())
    assert believed.all()
    assert estimator.steps == 0
    assert np.abs(errors[500:]).max() < 0.002


def test_exchanges_tell_a_longer_way_from_a_clock_that_was_set_back() -> None:
    """All messages take 40 ms longer from one moment on, without more jitter."""
    longer = Link("exponential", 0.002, 0.0402)
    session = Session(FAST, drifting(0.5), 60.0)
    slow = session.at >= 30.0
    session.arrivals[slow] += 0.04
    _, errors = session.run(one_way := ClockOffset())
    assert one_way.steps == 1  # what one direction cannot know

    session.exchange(FAST, FAST)
    before = session.exchanges
    session.exchange(longer, FAST)
    session.exchanges = [b if b[0] < 30.0 else a for b, a in zip(before, session.exchanges)]  # noqa: B905
    _, errors = session.run(two_way := ClockOffset())
    assert two_way.steps == 0
    assert np.abs(errors[500:]).max() < 0.003


@pytest.mark.parametrize("seed", range(5))
def test_broken_stamps_at_any_time(seed: int) -> None:
    session = Session(FAST, drifting(0.75), seconds=30.0, seed=seed)
    rng = np.random.default_rng(seed)
    broken = rng.random(len(session.stamps)) < 0.1
    broken[0] = True  # the very first, too
    session.stamps[broken] = rng.choice(
        [0.0, 2.0**33 - 1, EPOCH + 1e6, 12.5], np.count_nonzero(broken)
    )
    believed, errors = session.run(estimator := ClockOffset())
    np.testing.assert_array_equal(believed[10:], ~broken[10:])
    assert np.abs(errors[50:]).max() < 0.002
    assert estimator.steps == 0
    assert estimator.refused == np.count_nonzero(~believed)


def test_broken_stamps_that_agree_but_do_not_follow_each_other_are_no_step() -> None:
    session = Session(FAST, drifting(0.75), seconds=30.0)
    session.stamps[60::5] += 1000.0
    _, errors = session.run(estimator := ClockOffset())
    assert np.abs(errors[50:]).max() < 0.002
    assert (estimator.steps, estimator.refused) == (0, len(session.stamps[60::5]))


def test_a_broken_stamp_a_little_in_the_future_does_not_move_the_clock() -> None:
    session = Session(FAST, drifting(0.75), seconds=60.0)
    session.stamps[100::1000] += 0.1
    believed, errors = session.run(estimator := ClockOffset())
    assert believed.all()
    assert np.abs(errors[50:]).max() < 0.002
    assert estimator.steps == 0


@pytest.mark.parametrize("wrong", [0.0, 1000.0, 2.0**33 - 1])
@pytest.mark.parametrize("count", [1, 2, 10, 24, 50, 200])
def test_a_clock_that_is_wrong_at_first(wrong: float, count: int) -> None:
    """As on a board without a battery, whose clock is set once the network is up."""
    session = Session(FAST, drifting(0.75), seconds=30.0)
    session.stamps[:count] = wrong + np.arange(count) / 60
    _, errors = session.run(ClockOffset())
    right_at = session.at[count] + 2.0
    assert np.abs(errors[session.arrivals > max(right_at, 1.0)]).max() < 0.003


def test_a_burst_after_a_stall_is_no_step() -> None:
    """A second of messages that a network held back and delivers at once, then goes on."""
    session = Session(FAST, drifting(0.75), seconds=30.0)
    stalled = (session.at > 10.0) & (session.at < 11.0)
    session.arrivals[stalled] = 11.0
    session.arrivals = np.maximum.accumulate(session.arrivals)
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 0
    assert believed.all()  # late, not broken
    assert np.abs(errors[50:]).max() < 0.002


def test_a_queue_that_empties_slowly_is_no_step() -> None:
    """Three seconds held back, then delivered twice as fast as they were sent."""
    session = Session(FAST, drifting(0.75), seconds=30.0)
    held = (session.at > 10.0) & (session.at < 16.0)
    session.arrivals[held] = 13.0 + 0.5 * (session.at[held] - 10.0)
    session.arrivals = np.maximum.accumulate(session.arrivals)
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 0
    assert believed.all()
    assert np.abs(errors[50:]).max() < 0.002


def test_drift_during_a_long_silence_is_no_step() -> None:
    session = Session(FAST, drifting(0.75, 1e-4), seconds=700.0)
    heard = (session.at < 2.0) | (session.at > 650.0)
    session.at, session.arrivals = session.at[heard], session.arrivals[heard]
    session.stamps = session.stamps[heard]
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 0
    assert believed.all()
    assert np.abs(errors[session.arrivals > 652.0]).max() < 0.003


def test_one_broken_stamp_and_one_good_make_no_middle() -> None:
    for stamps in ((0.0, EPOCH), (EPOCH, 0.0)):
        estimator = ClockOffset()
        for stamp in stamps:
            estimator.update(stamp, EPOCH + 0.5)
        assert estimator.offset_s in (EPOCH + 0.5, 0.5)


exchanges = st.tuples(
    st.floats(-(2.0**33), 2.0**33), st.floats(0.0, 10.0), st.floats(EPOCH, EPOCH + 5000)
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(0.0, 2.0**33, exclude_max=True), st.sampled_from([EPOCH, 0.0])),
            st.floats(0.0, 40.0),
            st.none() | exchanges,
        ),
        max_size=120,
    ),
    st.integers(1, 60),
)
def test_any_stamps(
    messages: list[tuple[float, float, tuple[float, float, float] | None]], calibrate_after: int
) -> None:
    estimator, arrival = ClockOffset(calibrate_after), EPOCH
    for number, (sent, pause, exchange) in enumerate(messages, 1):
        arrival += pause
        if exchange is not None:
            estimator.exchanged(*exchange)
        believed = estimator.update(sent, arrival)
        assert isinstance(believed, bool)
        assert estimator.calibrated == (number >= calibrate_after)
        offset = estimator.offset_s
        assert offset is not None
        assert math.isfinite(offset) and abs(offset) <= 2.0**33 + 5000
        # The drift is at most 500 ppm, and extrapolated over two minutes at most.
        assert abs(estimator.to_local(sent) - sent - offset) < 0.2


def test_before_the_first_message_a_stamp_stays_as_it_is() -> None:
    estimator = ClockOffset()
    assert estimator.offset_s is None
    assert not estimator.calibrated
    assert estimator.to_local(123.0) == 123.0


def test_settles_after_the_first_messages() -> None:
    estimator = ClockOffset(calibrate_after=50)
    for number in range(50):
        assert not estimator.calibrated
        estimator.update(EPOCH + number, EPOCH + number + 0.0123)
    assert estimator.calibrated
    assert estimator.offset_s == pytest.approx(0.0123, abs=1e-6)


def test_a_stamp_in_the_local_clock_has_the_offset_of_its_time() -> None:
    session = Session(Link("exponential", 1e-5, 0.0), drifting(0.5, 1e-4), seconds=60.0)
    session.run(estimator := ClockOffset())
    for t in (30.0, 50.0, 59.0, 65.0):
        stamp = EPOCH + t - session.offset(np.array(t))
        assert estimator.to_local(float(stamp)) == pytest.approx(EPOCH + t, abs=2e-4)


def test_a_flood_does_not_grow_the_memory() -> None:
    """Every delay a little above the last, and each with an exchange."""
    estimator = ClockOffset()
    tracemalloc.start()
    try:
        for number in range(10_000):
            at = EPOCH + number * 0.01
            estimator.exchanged(number * 1e-5, 0.001, at)
            estimator.update(at - 0.5 - number * 1e-5, at)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_estimate_needs_a_message() -> None:
    with pytest.raises(ValueError, match="message"):
        ClockOffset(calibrate_after=0)


def test_what_is_older_than_the_window_is_forgotten_of_a_sparse_stream_too() -> None:
    envelope = Envelope(60.0)
    for at in range(0, 200, 5):
        envelope.take(-1.0 if at == 0 else 0.0, float(at))
        envelope.end_bucket(at + 0.3)
        envelope.fit(at + 0.3)
    # The one message of three minutes ago that was a second earlier says nothing of now.
    assert envelope.line.offset(200.0) == pytest.approx(0.0, abs=0.01)
