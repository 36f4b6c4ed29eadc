"""How far a sender's clock is behind ours, from the stamps of its messages and from exchanges."""

from __future__ import annotations

from collections import deque
from statistics import median_low

from common.delay_envelope import Envelope, Line, Point
from common.two_way import Bounds, Exchange, TwoWay

__all__ = ["ClockOffset"]

_LATEST_S = 10.0
_AWAY_S = 30.0  # a silence after which drift may have moved the clock further than delays vary
_RUN, _RUN_S = 10, 0.3
_DIPS, _DIPS_S, _DIPS_SHARE = 5, 0.1, 0.15
_DIPS_APART_S, _DIPS_KEPT_S = 2.0, 60.0
_DIP_S = 0.005
_RISE_S, _RISE_LASTS_S = 0.010, 0.5
_TIMES_USUAL = 3.0
_ONE_WAY_AFTER_S = 30.0
_ANSWERING_S = 5.0
_WAITING = 4  # a fifth of a second of exchanges, in a burst
_DISAGREE_S = 0.005


class ClockOffset:
    """How far a sender's clock is behind ours: one-way from delays alone, or two-way.

    Each message gives `arrival − send stamp` = offset + delay. The smallest differences of a
    sliding window lie on a line (see `common.delay_envelope`); that line is the offset plus the
    least delay. Exchanges of timestamps (see `common.two_way`) take the least delay out.

    A stamp from the future, or more than 10 s late, is refused. A clock that was set shows in
    three ways, all confirmed by a run of messages, and the estimate starts again from that run:
    stamps far off that agree among themselves; differences clearly below the line, which no delay
    can cause; the smallest differences of a second all clearly above it. The last may be delay,
    too. An exchange tells, and while there are exchanges nothing is believed without one.

    `update` is for one thread at a time; all else may be called from any.
    """

    def __init__(
        self, calibrate_after: int = 50, window_s: float = 60.0, step_s: float = 0.5
    ) -> None:
        """Settle after `calibrate_after` messages; refuse stamps over `step_s` in the future."""
        if calibrate_after < 1:
            raise ValueError("a clock's offset needs at least one message")
        self._calibrate_after = calibrate_after
        self._step_s = step_s
        self._first: list[Point] = []
        self._envelope = Envelope(window_s)
        self._two_way = TwoWay(0.5 * step_s)
        self._bounds: Bounds | None = None
        # Filled by the thread that answers exchanges, emptied by the one that takes messages.
        self._exchanges: deque[Exchange] = deque(maxlen=_WAITING)
        self._dip_s = _DIP_S
        self._count = 0
        self._dips: deque[tuple[int, Point]] = deque(maxlen=64)
        self._far: deque[Point] = deque(maxlen=64)
        self._line: Line | None = None
        self._last_at = 0.0
        self.steps = 0
        self.refused = 0
        self.two_way = False
        """Whether exchanges are behind the estimate now."""

    @property
    def calibrated(self) -> bool:
        """Whether the first messages are in."""
        return len(self._first) >= self._calibrate_after

    @property
    def offset_s(self) -> float | None:
        """Our clock less the sender's at the newest message, in seconds; None before the first."""
        line = self._line
        return None if line is None else line.offset(self._last_at)

    @property
    def delay_s(self) -> float | None:
        """The least delay of the messages, in seconds; None while it is not known apart."""
        line = self._line
        if line is None or not self.two_way:
            return None
        return max(self._envelope.line.offset(self._last_at) - line.offset(self._last_at), 0.0)

    def to_local(self, stamp: float) -> float:
        """A stamp of the sender in our time base; as it is while nothing is known."""
        line = self._line
        return stamp if line is None else line.local(stamp)

    def exchanged(self, offset_s: float, delay_s: float, at: float) -> None:
        """Take what an exchange of four timestamps said.

        `offset_s` = ((t1 − t0) + (t2 − t3)) / 2 and the round trip
        `delay_s` = (t3 − t0) − (t2 − t1) in seconds, where t1 and t2 are in our clock and t0 and
        t3 in the sender's; `at` is the moment in our clock that this is for.
        """
        self._exchanges.append(Exchange(offset_s, delay_s, at))

    def update(self, sent: float, arrival: float) -> bool:
        """Take one message; False when its stamp is not to be believed.

        `sent` is in the sender's clock, `arrival` in ours, both in seconds.
        """
        difference = arrival - sent
        if not self.calibrated:
            return self._begin(difference, arrival)
        envelope = self._envelope
        if arrival - self._last_at > _AWAY_S:
            self._forget(arrival)
        self._last_at = arrival
        self._count += 1
        if envelope.bucket_over(arrival):
            self._end_bucket(arrival)
        height = difference - envelope.line.offset(arrival)
        if not -self._step_s <= height <= _LATEST_S:
            return self._take_far(difference, arrival)
        if self._far:
            self._far.clear()
        if height < -self._dip_s:
            self._take_dip(difference, arrival)
            return True
        lowered = height < 0.0
        envelope.take(difference, arrival)
        if lowered:
            self._publish(arrival)
        return True

    def _begin(self, difference: float, arrival: float) -> bool:
        self._first.append((arrival, difference))
        self._last_at = arrival
        # The median of a few survives broken stamps among the first messages. The low one is a
        # difference that occurred, where the middle of two may lie far from both.
        middle = median_low(d for _, d in self._first)
        sound = [(at, d) for at, d in self._first if abs(d - middle) <= self._step_s]
        at, low = min(sound, key=lambda point: point[1])
        self._envelope.restart([(at, low)], arrival)
        if self.calibrated:
            self._dip_s = max(_DIP_S, middle - low)
        self._ask_exchanges(arrival)
        self._weigh_exchanges(arrival)
        self._publish(arrival)
        believed = abs(difference - middle) <= self._step_s
        self.refused += not believed
        return believed

    def _end_bucket(self, now: float) -> None:
        envelope = self._envelope
        self._ask_exchanges(now)
        stale = envelope.end_bucket(now)
        if risen := self._risen(now):
            self._set(risen, now)
        elif stale:
            envelope.fit(now)
            if len(envelope.recent) == envelope.recent.maxlen:
                self._dip_s = max(_DIP_S, _TIMES_USUAL * envelope.usual_height())
        self._weigh_exchanges(now)
        self._publish(now)

    def _ask_exchanges(self, now: float) -> None:
        while self._exchanges:
            exchange = self._exchanges.popleft()
            moved = self._two_way.add(exchange, self._envelope.slope, self._envelope.slope_error)
            if moved is not None:
                # All differences moved by this; messages will soon say it more exactly.
                line = self._envelope.line
                self._forget(now)
                self._envelope.line = line._replace(offset_s=line.offset_s + moved)
                self._stepped(moved)

    def _risen(self, now: float) -> list[Point]:
        """The last second's minima where a clock that was set back must be the reason."""
        envelope, recent = self._envelope, self._envelope.recent
        if len(recent) < (recent.maxlen or 0) or recent[-1].at - recent[0].at < _RISE_LASTS_S:
            return []
        heights = [bucket.low - envelope.line.offset(bucket.at) for bucket in recent]
        if min(heights) < _RISE_S:
            return []
        high = max(_RISE_S, _TIMES_USUAL * envelope.usual_height(len(recent)))
        if min(heights) < high:
            return []
        if self._answering(now):
            moved = self._two_way.moved(recent[0].at, envelope.slope, now)
            if moved is None:
                return []
            offset_s, round_trip_s = moved
            # The messages rose as the offset did, and the round trip did not grow instead.
            if not 0.5 * min(heights) <= offset_s <= 1.25 * min(
                heights
            ) or round_trip_s > 0.5 * min(heights):
                return []
            return [(bucket.at, bucket.low) for bucket in recent]
        jitter_s = sum(bucket.mean - bucket.low for bucket in recent) / len(recent)
        if (
            # A queue that empties, or fills, does not stay where it is.
            max(heights) - min(heights) > max(high, 0.1 * min(heights))
            # Congestion spreads the delays, a clock that is set moves them all alike.
            or jitter_s > 3.0 * envelope.usual_jitter(len(recent)) + _DIP_S
        ):
            return []
        return [(bucket.at, bucket.low) for bucket in recent]

    def _take_dip(self, difference: float, arrival: float) -> None:
        """Below the line: the clock was set forward, or this is the least delay for once."""
        dips = self._dips
        while dips and dips[0][1][0] < arrival - _DIPS_KEPT_S:
            dips.popleft()
        dips.append((self._count, (arrival, difference)))
        run: list[Point] = []
        for count, point in reversed(dips):
            run.append(point)
            if len(run) >= _DIPS and arrival - point[0] >= _DIPS_S:
                if len(run) >= _DIPS_SHARE * (self._count - count + 1):
                    self._set(run[::-1], arrival)
                    self._publish(arrival)
                    return
                break
        if len(dips) >= _DIPS and arrival - dips[0][1][0] > _DIPS_APART_S:
            for _, (at, low) in dips:
                self._envelope.take(low, at)
            dips.clear()

    def _take_far(self, difference: float, arrival: float) -> bool:
        """A stamp far off: a broken one, unless those that follow agree with it for a while."""
        if self._far and abs(difference - self._far[-1][1]) > self._step_s:
            self._far.clear()
        self._far.append((arrival, difference))
        # A burst of old messages after a stall agrees too, but comes all at once.
        if len(self._far) < _RUN or arrival - self._far[0][0] < _RUN_S:
            self.refused += 1
            return False
        self._set([min(self._far, key=lambda point: point[1])], arrival)
        self._publish(arrival)
        return True

    def _set(self, points: list[Point], now: float) -> None:
        """Start again from a run of messages."""
        before = self._envelope.line.offset(now)
        self._envelope.restart(points, now)
        # A few messages are rarely among the fastest: those that follow may be faster by far.
        self._dip_s = max(self._dip_s, _TIMES_USUAL * self._envelope.usual_jitter(0))
        self._two_way.clear(points[0][0])
        self._bounds = None
        self._stepped(self._envelope.line.offset(now) - before)

    def _forget(self, now: float) -> None:
        """Keep the line, but let the next messages lay it anew."""
        self._envelope.restart((), now)
        self._dip_s = self._step_s

    def _stepped(self, moved_s: float) -> None:
        self._dips.clear()
        self._far.clear()
        self.steps += 1
        self.was_set(-moved_s)

    def was_set(self, by_s: float) -> None:
        """Called once the estimate began again; the clock was set forward by about `by_s`."""

    def _answering(self, now: float) -> bool:
        """Whether there are exchanges, of the messages' clock, to be asked for evidence."""
        last_at = self._two_way.last_at
        of_this_clock = self._bounds is not None or self._two_way.in_doubt
        return of_this_clock and last_at is not None and now - last_at < _ANSWERING_S

    def _weigh_exchanges(self, now: float) -> None:
        """Look at what the exchanges say, where they are recent and of the messages' clock."""
        two_way, line = self._two_way, self._envelope.line
        last_at = two_way.last_at
        self._bounds = None
        if last_at is None or now - last_at > _ONE_WAY_AFTER_S or two_way.in_doubt:
            return
        bounds, offset = two_way.bounds(line.slope, now), line.offset(now)
        # No message is faster than light, and none takes as long as a broken stamp would be off.
        if (
            bounds
            and offset - bounds.low_s >= -_DISAGREE_S
            and offset - bounds.high_s <= self._step_s
        ):
            self._bounds = bounds

    def _publish(self, now: float) -> None:
        line, bounds = self._envelope.line, self._bounds
        offset = line.offset(now)
        if bounds is not None:
            offset = max(min(bounds.middle_s, offset), bounds.low_s)
        self.two_way = bounds is not None
        self._line = Line(offset, line.slope, now)
