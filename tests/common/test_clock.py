"""Ticks and offsets on simulated time; real time only where a wide margin does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import clock
from common.clock import RateMeter, Tick, Ticker

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
