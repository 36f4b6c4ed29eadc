"""Ticks and offsets on simulated time; real time only where a wide margin does."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import clock
from common.clock import ClockOffset, RateMeter, Tick, Ticker

# --- now -----------------------------------------------------------------------------------------


class FakeTime:
    """Stands for the `time` module and, in a ticker's hands, for the stop event."""

    def __init__(self) -> None:
        self.at = 5000.0
        self.wall = 1.7e9
        self.stopped = False
        self.oversleep_s = 0.0

    def monotonic(self) -> float:
        return self.at

    def time(self) -> float:
        return self.wall

    def wait(self, timeout: float) -> bool:
        assert timeout > 0
        self.at += timeout + self.oversleep_s
        return self.stopped

    def is_set(self) -> bool:
        return self.stopped


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock, "time", fake)
    return fake


def test_now_does_not_step_with_the_wall_clock(fake: FakeTime) -> None:
    before, wall_before = clock.now(), clock.wall()
    fake.wall += 3600.0
    fake.at += 2.0
    assert clock.now() - before == pytest.approx(2.0)
    assert clock.wall() - wall_before == 3600.0


def test_now_is_unix_time_and_converts_monotonic_time() -> None:
    assert clock.now() == pytest.approx(time.time(), abs=5.0)
    mark = time.monotonic()
    assert clock.to_now(mark + 1.5) - clock.to_now(mark) == pytest.approx(1.5, abs=1e-5)
    assert clock.to_now(mark) == pytest.approx(clock.now(), abs=1.0)


# --- ticker --------------------------------------------------------------------------------------


def ticks(ticker: Ticker, fake: FakeTime) -> Iterator[Tick]:
    return ticker.ticks(fake)  # type: ignore[arg-type]


def test_ticks_lie_on_the_grid_and_never_drift(fake: FakeTime) -> None:
    ticker = Ticker(30.0)
    fake.oversleep_s = 0.004  # every sleep ends late, and every tick does some work
    for tick in islice(ticks(ticker, fake), 20_000):
        assert tick.deadline == pytest.approx(ticker.start + tick.index / 30.0, abs=1e-6)
        assert tick.lateness_s == pytest.approx(0.004, abs=1e-6)
        assert tick.skipped == 0
        last = tick
        fake.at += 0.02
    assert last.index == 19_999
    assert last.deadline == pytest.approx(5000.0 + 20_000 / 30.0, abs=1e-6)


def test_the_first_tick_is_due_one_period_after_the_start_or_when_told(fake: FakeTime) -> None:
    assert next(ticks(Ticker(10.0), fake)).deadline == pytest.approx(5000.1)
    assert next(ticks(Ticker(10.0, start=5003.0), fake)).deadline == 5003.0


def test_missed_ticks_are_left_out_on_the_grid(fake: FakeTime) -> None:
    ticker = Ticker(10.0, start=5000.0)
    running = ticks(ticker, fake)
    assert next(running).index == 0
    fake.at += 0.57  # ticks 1 to 4 are past, 5 is the one being due
    tick = next(running)
    assert (tick.index, tick.skipped) == (5, 4)
    assert tick.deadline == pytest.approx(5000.5)
    assert tick.lateness_s == pytest.approx(0.07)
    tick = next(running)  # no burst: the next one is waited for
    assert (tick.index, tick.skipped) == (6, 0)
    assert fake.at == pytest.approx(5000.6)
    assert tick.lateness_s == pytest.approx(0.0, abs=1e-6)


def test_a_tick_late_by_less_than_a_period_is_not_missed(fake: FakeTime) -> None:
    running = ticks(Ticker(10.0, start=5000.0), fake)
    next(running)
    fake.at += 0.19
    tick = next(running)
    assert (tick.index, tick.skipped) == (1, 0)
    assert tick.lateness_s == pytest.approx(0.09)


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.5, 1000.0), work=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40))
def test_any_work_between_ticks(rate: float, work: list[float]) -> None:
    fake = FakeTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", fake)
        ticker, previous = Ticker(rate), -1
        running = ticks(ticker, fake)
        for busy_periods in work:
            tick = next(running)
            assert tick.index == previous + 1 + tick.skipped
            assert tick.deadline == pytest.approx(ticker.start + tick.index / rate, abs=1e-6)
            assert -1e-6 <= tick.lateness_s < ticker.period_s + 1e-6
            assert fake.at >= tick.deadline
            previous = tick.index
            fake.at += busy_periods / rate


def test_no_tick_after_a_stop(fake: FakeTime) -> None:
    running = ticks(Ticker(10.0), fake)
    next(running)
    fake.stopped = True
    assert list(running) == []
    fake.at += 1.0
    assert list(ticks(Ticker(10.0, start=fake.at - 5.0), fake)) == []  # also when ticks are due


def test_a_stop_ends_a_long_wait_at_once() -> None:
    stop, entered, seen = threading.Event(), threading.Event(), []

    def run() -> None:
        entered.set()
        seen.extend(Ticker(1 / 3600).ticks(stop))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert entered.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == []


def test_real_time_passes_between_ticks() -> None:
    ticker, stop = Ticker(100.0), threading.Event()
    seen = list(islice(ticker.ticks(stop), 20))
    assert time.monotonic() >= ticker.start + 0.19
    assert all(tick.lateness_s >= 0 for tick in seen)
    assert [tick.index for tick in seen] == sorted({tick.index for tick in seen})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Ticker(rate)


# --- offsets -------------------------------------------------------------------------------------

EPOCH = 1.7e9
Delays = Callable[[np.random.Generator, int], np.ndarray]


def exponential(rng: np.random.Generator, count: int) -> np.ndarray:
    """0.2 ms at least, 5 ms on top on average: a busy network."""
    return 0.0002 + rng.exponential(0.005, count)


def bimodal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Mostly held back for 20 ms, as by a batching driver."""
    return np.where(rng.random(count) < 0.3, 0.0003, 0.020) + rng.exponential(0.0002, count)


class Session:
    """Messages of a sender whose clock is behind ours by `offset(t)`."""

    def __init__(
        self,
        delays: Delays,
        offset: Callable[[np.ndarray], np.ndarray],
        seconds: float = 60.0,
        rate_hz: float = 100.0,
        seed: int = 1,
    ) -> None:
        rng = np.random.default_rng(seed)
        sent_at = EPOCH + np.arange(int(seconds * rate_hz)) / rate_hz
        self.delays = delays(rng, len(sent_at))
        self.arrivals = np.maximum.accumulate(sent_at + self.delays)  # in order, as on a socket
        self.offsets = offset(sent_at - EPOCH)
        self.stamps = sent_at - self.offsets

    def run(self, estimator: ClockOffset) -> tuple[np.ndarray, np.ndarray]:
        """What was believed and the estimate's error in seconds, after each message."""
        believed, errors = [], []
        for stamp, arrival, offset in zip(self.stamps, self.arrivals, self.offsets, strict=True):
            believed.append(estimator.update(float(stamp), float(arrival)))
            assert estimator.offset_s is not None
            errors.append(estimator.offset_s - offset)
        return np.array(believed), np.array(errors)

    def mean_errors(self) -> np.ndarray:
        """The same of the mean of the first 50, which existing rigs use."""
        return np.mean((self.arrivals - self.stamps)[:50]) - self.offsets


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def constant(seconds: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.full_like(t, seconds)


@pytest.mark.parametrize("delays", [exponential, bimodal])
@pytest.mark.parametrize("offset_s", [0.0123, -3600.5, 1.6e9])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_offset_of_a_steady_clock(delays: Delays, offset_s: float, seed: int) -> None:
    session = Session(delays, constant(offset_s), seed=seed)
    believed, errors = session.run(estimator := ClockOffset())
    assert believed.all()
    assert (errors[49:] > 0).all()  # never more than the smallest delay off, and to that side
    assert errors[49:].max() < 0.002
    assert errors[1000:].max() < 0.0006
    assert np.abs(errors[1000:]).max() < 0.2 * np.abs(session.mean_errors()[1000:]).min()
    assert (estimator.steps, estimator.refused) == (0, 0)


@pytest.mark.parametrize("delays", [exponential, bimodal])
@pytest.mark.parametrize("drift", [100e-6, -100e-6])
def test_offset_of_a_drifting_clock(delays: Delays, drift: float) -> None:
    session = Session(delays, lambda t: 0.5 + drift * t, seconds=180.0)
    believed, errors = session.run(estimator := ClockOffset(window_s=30.0))
    assert believed.all()
    # A clock that loses time is followed from behind, by at most the window's drift (3 ms).
    assert np.abs(errors[50:]).max() < 0.0036
    assert rms(errors[1000:]) < 0.6 * rms(session.mean_errors()[1000:])
    assert estimator.steps == 0


@pytest.mark.parametrize("delays", [exponential, bimodal])
@pytest.mark.parametrize("step_s", [0.6, -0.6, 7200.0, -1.6e9])
def test_a_clock_that_is_set(delays: Delays, step_s: float) -> None:
    session = Session(delays, lambda t: np.where(t < 30.0, 2.0, 2.0 + step_s))
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 1
    late = 0 < step_s <= 10  # or these messages are just late: believed, not for the clock
    assert believed[3000:3020].all() if late else not believed[3000:3020].any()
    assert believed[3035:].all()
    assert np.abs(errors[3035:]).max() < 0.003
    assert np.abs(errors[-500:]).max() < 0.0006
    assert np.abs(session.mean_errors()[-1]) > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_broken_stamps_at_any_time(seed: int) -> None:
    session = Session(exponential, constant(0.75), seconds=30.0, seed=seed)
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
    session = Session(exponential, constant(0.75), seconds=30.0)
    session.stamps[60::5] += 1000.0
    _, errors = session.run(estimator := ClockOffset())
    assert np.abs(errors[50:]).max() < 0.002
    assert (estimator.steps, estimator.refused) == (0, len(session.stamps[60::5]))


@pytest.mark.parametrize("wrong", [0.0, 1000.0, 2.0**33 - 1])
@pytest.mark.parametrize("count", [1, 2, 10, 24, 50, 200])
def test_a_clock_that_is_wrong_at_first(wrong: float, count: int) -> None:
    """As on a board without a battery, whose clock is set once the network is up."""
    session = Session(exponential, constant(0.75), seconds=30.0)
    session.stamps[:count] = wrong + np.arange(count) / 100
    _, errors = session.run(ClockOffset())
    assert np.abs(errors[max(count + 35, 50) :]).max() < 0.003


def test_a_burst_after_a_stall_is_no_step() -> None:
    """A second of messages that a network held back and delivers at once, then goes on."""
    session = Session(exponential, constant(0.75), seconds=30.0)
    stalled = slice(1000, 1100)
    session.arrivals[stalled] = session.arrivals[1100]
    believed, errors = session.run(estimator := ClockOffset())
    assert estimator.steps == 0
    assert believed.all()  # late, not broken
    assert np.abs(errors[50:]).max() < 0.002


def test_one_broken_stamp_and_one_good_make_no_middle() -> None:
    for stamps in ((0.0, EPOCH), (EPOCH, 0.0)):
        estimator = ClockOffset()
        for stamp in stamps:
            estimator.update(stamp, EPOCH + 0.5)
        assert estimator.offset_s in (EPOCH + 0.5, 0.5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(0.0, 2.0**33, exclude_max=True), st.sampled_from([EPOCH, 0.0])),
            st.floats(0.0, 40.0),
        ),
        max_size=120,
    ),
    st.integers(1, 60),
)
def test_any_stamps(messages: list[tuple[float, float]], calibrate_after: int) -> None:
    estimator, arrival = ClockOffset(calibrate_after), EPOCH
    for number, (sent, pause) in enumerate(messages, 1):
        arrival += pause
        believed = estimator.update(sent, arrival)
        assert isinstance(believed, bool)
        assert estimator.calibrated == (number >= calibrate_after)
        # An estimate is always one that some message gave.
        offset = estimator.offset_s
        assert offset is not None
        assert abs(offset) <= 2.0**33
        if believed and estimator.calibrated and number > calibrate_after:
            assert offset <= arrival - sent
        assert estimator.to_local(sent) == sent + offset


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


def test_an_old_minimum_is_forgotten_after_the_window() -> None:
    estimator = ClockOffset(calibrate_after=5, window_s=10.0)
    for second in range(40):
        estimator.update(EPOCH + second, EPOCH + second + (0.001 if second < 10 else 0.101))
        if second != 19:  # there the last small delay is just as old as the window is long
            assert estimator.offset_s == pytest.approx(0.001 if second < 19 else 0.101, abs=1e-6)


def test_a_flood_does_not_grow_the_window() -> None:
    """Every delay a little above the last: nothing leaves the window's minimum by itself."""
    estimator = ClockOffset()
    tracemalloc.start()
    try:
        for number in range(30_000):
            estimator.update(EPOCH, EPOCH + number * 1e-5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_estimate_needs_a_message() -> None:
    with pytest.raises(ValueError, match="message"):
        ClockOffset(calibrate_after=0)


# --- rates ---------------------------------------------------------------------------------------


def test_rate_of_steady_batches(fake: FakeTime) -> None:
    meter = RateMeter(window_s=2.0)
    for _ in range(500):
        fake.at += 0.02
        meter.add(13)
    assert meter.rate_hz() == pytest.approx(650.0, rel=0.01)
    assert meter.total == 6500


def test_rate_follows_within_the_window(fake: FakeTime) -> None:
    meter = RateMeter(window_s=2.0)
    for period in (0.01, 0.1):
        for _ in range(int(5 / period)):
            fake.at += period
            meter.add()
        assert meter.rate_hz() == pytest.approx(1 / period, rel=0.1)


def test_no_events_no_rate(fake: FakeTime) -> None:
    meter = RateMeter(window_s=2.0)
    assert meter.rate_hz() == 0.0
    meter.add()
    assert meter.rate_hz() == 0.0
    meter.add(100)  # at the same instant
    assert meter.rate_hz() == 0.0
    fake.at += 1.0
    meter.add()
    assert meter.rate_hz() > 0.0
    fake.at += 2.1
    assert meter.rate_hz() == 0.0
    assert meter.total == 102


def test_a_meter_may_be_read_while_it_is_fed() -> None:
    meter, stop = RateMeter(), threading.Event()

    def feed() -> None:
        while not stop.is_set():
            meter.add()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        assert all(meter.rate_hz() >= 0.0 for _ in range(200))
    finally:
        stop.set()
        feeder.join(10)
