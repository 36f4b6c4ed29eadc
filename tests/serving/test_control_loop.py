"""The client's control loop in virtual time: a body that obeys, a server that is a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.step_limiter import StepLimiter
from serving.aggregation import Aggregation, choose
from serving.body import BodyError, BodyState, Seen
from serving.control_loop import ControlLoop
from serving.control_values import Arrival, LoopOptions, Step
from serving.messages import Chunk, FeatureReply, Observation, ServingError

NAMES = ("a.pos", "b.pos", "gripper.pos")
FPS = 10.0
PERIOD = 1 / FPS


@dataclass
class FakeBody:
    """Goes where it is sent, at once. Time is given by the test."""

    now: float = 0.0
    position: np.ndarray = field(default_factory=lambda: np.zeros(3))
    step: float = 5.0
    cameras: Mapping[str, tuple[int, int, int]] = field(
        default_factory=lambda: {"front": (4, 6, 3), "side": (4, 6, 3)}
    )
    silent_since: dict[str, float] = field(default_factory=dict)
    read_fails: str = ""
    move_fails: str = ""
    hold_fails: str = ""
    moves: list[tuple[float, np.ndarray]] = field(default_factory=list)
    holds: int = 0
    state_names: tuple[str, ...] = NAMES
    action_names: tuple[str, ...] = NAMES
    turns: tuple[bool, bool, bool] = (False, False, False)

    def limiter(self, control_hz: float) -> StepLimiter:
        return StepLimiter(
            low=np.full(3, -100.0),
            high=np.full(3, 100.0),
            step=np.full(3, self.step),
            lead=np.full(3, self.step),
            turns=np.array(self.turns),
        )

    def open(self) -> None: ...

    def read(self) -> BodyState:
        if self.read_fails:
            raise BodyError(self.read_fails)
        return BodyState(self.position.copy(), self.now)

    def seen(self) -> dict[str, Seen]:
        picture = np.zeros((4, 6, 3), np.uint8)
        return {
            name: Seen(picture, min(self.now, self.silent_since.get(name, self.now)))
            for name in self.cameras
            if self.silent_since.get(name, 0.0) >= 0.0
        }

    def sensor(self, samples: int) -> None:
        return None

    def move(self, target: np.ndarray) -> None:
        if self.move_fails:
            raise BodyError(self.move_fails)
        assert (np.abs(target - self.position) <= self.step + 1e-9).all()
        self.moves.append((self.now, target))
        self.position = target.copy()

    def hold(self) -> None:
        if self.hold_fails:
            raise BodyError(self.hold_fails)
        self.holds += 1

    def close(self) -> None: ...


def ramp(observation: Observation, rows: int = 8, slope: float = 1.0) -> Chunk:
    """Row k of the answer: where step t + k should be, `slope` a step, the same for all joints."""
    steps = observation.timestep + np.arange(rows)
    actions = np.repeat(slope * steps[:, None], 3, axis=1).astype(np.float32)
    return Chunk(observation.timestep, observation.timestamp, actions)


class World:
    """Virtual time: a loop, a body, and a server that answers `delay` ticks later."""

    def __init__(
        self,
        body: FakeBody | None = None,
        options: LoopOptions | None = None,
        answer: Callable[[Observation], Chunk | FeatureReply | ServingError | None] = ramp,
        delay: int = 1,
    ) -> None:
        self.body = body or FakeBody()
        self.options = options or LoopOptions(fps=FPS, actions_per_chunk=8)
        self.loop = ControlLoop(self.body, self.options)
        self.answer, self.delay = answer, delay
        self.session: int | None = 1
        self.now, self.index = 100.0, 0
        self.on_the_way: list[tuple[int, Arrival]] = []
        self.sent: list[Observation] = []
        self.done: list[Step] = []

    def tick(self, count: int = 1, may_send: bool = True) -> Step:
        for _ in range(count):
            self.now = 100.0 + self.index * PERIOD
            self.body.now = self.now
            due = [arrival for at, arrival in self.on_the_way if at <= self.index]
            self.on_the_way = [item for item in self.on_the_way if item[0] > self.index]
            step = self.loop.step(self.now, self.session, due, may_send)
            if step.observation is not None:
                self.sent.append(step.observation)
                reply = self.answer(step.observation)
                if reply is not None:
                    came = Arrival(reply, self.now + self.delay * PERIOD)
                    self.on_the_way.append((self.index + self.delay, came))
            self.done.append(step)
            self.index += 1
        return self.done[-1]

    @property
    def held(self) -> list[str | None]:
        return [step.hold for step in self.done]

    @property
    def executed(self) -> list[int]:
        return [step.row.step for step in self.done if step.row is not None]


def test_it_follows_the_chunks_without_a_break() -> None:
    world = World()
    world.tick(60)
    assert world.held == ["no_action"] + [None] * 59
    assert world.executed == list(range(59))
    assert world.body.position == pytest.approx([58.0] * 3)
    first = world.sent[0]
    assert (first.timestep, first.must_go) == (0, True)
    assert not any(observation.must_go for observation in world.sent[1:])
    counters = world.loop.counters
    assert (counters.steps, counters.moves) == (60, 59)
    assert counters.observations == len(world.sent)
    assert counters.round_trips[0] == pytest.approx(PERIOD)


def test_observations_go_out_below_the_threshold_with_the_step_just_executed() -> None:
    world = World(options=LoopOptions(fps=FPS, actions_per_chunk=8, chunk_size_threshold=0.25))
    world.tick(30)
    for step in world.done[2:]:
        if step.observation is not None:
            assert step.row is not None and step.observation.timestep == step.row.step
    asked = [k for k, step in enumerate(world.done) if step.observation is not None]
    left = [(world.done[k].row.step) for k in asked[1:]]  # type: ignore[union-attr]
    # A chunk for step t reaches to t + 7; 2 rows are left after t + 5.
    assert left == [5, 10, 15, 20, 25]


def test_an_observation_holds_state_pictures_task_and_instant() -> None:
    world = World(options=LoopOptions(fps=FPS, task="pick"))
    world.body.position = np.array([1.0, 2.0, 3.0])
    world.tick()
    told = world.sent[0]
    assert told.state.tolist() == [1.0, 2.0, 3.0]
    assert told.state.dtype == np.float32
    assert told.task == "pick"
    assert set(told.pictures) == {"front", "side"}
    world.tick(5)
    stamps = [observation.timestamp for observation in world.sent]
    assert len(set(stamps)) == len(stamps)


def test_nothing_is_made_while_the_last_observation_is_on_its_way_out() -> None:
    world = World()
    world.tick(3, may_send=False)
    assert not world.sent
    world.tick()
    assert world.sent[0].must_go


def test_an_empty_queue_holds_and_must_go_is_said_again_only_after_a_while() -> None:
    options = LoopOptions(fps=FPS, actions_per_chunk=8, must_go_after_s=2.0)
    world = World(options=options, answer=lambda observation: None)
    world.tick(45)
    assert set(world.held) == {"no_action"}
    assert [round(o.timestamp - world.sent[0].timestamp, 3) for o in world.sent] == [0, 2, 4]
    assert all(o.must_go and o.timestep == 0 for o in world.sent)
    assert world.body.holds == 1 and not world.body.moves


def test_a_lost_server_holds_at_once_and_resumes_with_fresh_input_only() -> None:
    world = World(delay=3)
    world.tick(12)
    assert world.held[-1] is None
    before = len(world.sent)
    world.session = None
    world.tick(4)
    assert world.held[-4:] == ["not_connected"] * 4
    assert len(world.sent) == before, "nothing is made for a server that is not there"
    assert len(world.loop.queue) == 0
    late = list(world.on_the_way)
    world.on_the_way = [(world.index, arrival) for _, arrival in late] + [
        (world.index, Arrival(ramp(world.sent[-1]), world.now))
    ]
    world.session, back = 2, len(world.done)
    world.tick(6)
    assert world.held[back : back + 3] == ["no_action"] * 3, "answers to the old session are none"
    assert world.held[back + 3] is None
    assert world.loop.counters.ignored >= 1
    assert world.sent[before].must_go
    for step in world.done[back:]:
        if step.row is not None:
            assert step.row.measured_at >= 100.0 + back * PERIOD - 1e-9
    assert world.executed == sorted(set(world.executed)), "the count of steps goes on"


def test_a_session_that_changed_between_two_ticks_is_a_new_one_too() -> None:
    world = World()
    world.tick(5)
    world.session, world.on_the_way = 2, []
    assert world.tick().hold == "no_action"
    assert world.sent[-1].must_go


def test_a_silent_camera_holds_and_nothing_is_sent() -> None:
    world = World()
    world.tick(5)
    world.body.silent_since["side"] = world.now
    world.tick(40)
    limit = world.options.camera_timeout_s
    for k, step in enumerate(world.done[5:], 5):
        silent_s = (k - 4) * PERIOD
        if silent_s > limit + 1e-6:
            assert (step.hold, step.observation) == ("camera", None)
        elif silent_s < limit - 1e-6:
            assert step.hold is None
    world.body.silent_since.clear()
    world.tick(3)
    assert world.held[-1] is None


def test_a_camera_that_never_gave_a_picture_holds(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.body.silent_since["front"] = -1.0
    assert world.tick(3).hold == "camera"
    assert "front has given no picture yet" in caplog.text


def test_an_observation_is_as_old_as_its_oldest_picture() -> None:
    world = World()
    world.body.silent_since["side"] = 99.5
    world.tick(3)
    row = world.done[1].row
    assert row is not None
    assert row.measured_at == 99.5


def test_a_robot_that_cannot_be_read_or_moved_holds_and_goes_on() -> None:
    world = World()
    world.tick(4)
    world.body.read_fails = "the bus is silent"
    assert world.tick().hold == "body"
    world.body.read_fails = ""
    assert world.tick().hold is None
    world.body.move_fails = "the motor is hot"
    assert world.tick(2).hold == "body"
    world.body.move_fails = ""
    assert world.tick().hold is None
    world.body.position[1] = np.nan
    assert world.tick().hold == "body"
    assert world.executed == list(range(len(world.executed))), "no step was lost or repeated"
    assert world.loop.counters.holds == {"no_action": 1, "body": 3}
    assert world.loop.counters.held["body"] == 4


def test_a_hold_that_is_not_taken_is_said_again() -> None:
    world = World(answer=lambda observation: None)
    world.body.hold_fails = "not now"
    world.tick(3)
    world.body.hold_fails = ""
    world.tick(5)
    assert world.body.holds == 1


def test_a_move_that_fails_is_followed_by_a_hold_also_while_on_hold() -> None:
    world = World()
    world.tick(4)
    body, sent = world.body, list[str]()
    world.body.read_fails = "the bus is silent"
    world.tick()
    world.body.read_fails = ""
    holds = body.holds

    def moves_and_fails(target: np.ndarray) -> None:
        sent.append("move")
        raise BodyError("no confirmation came")

    body.move = moves_and_fails  # type: ignore[method-assign]
    assert world.tick(3).hold == "body"
    assert len(sent) == 3
    assert body.holds == holds + 3, "each may have been on its way"


def test_a_read_that_takes_long_makes_the_input_no_younger() -> None:
    world = World(
        options=LoopOptions(fps=FPS, actions_per_chunk=8, max_input_age_s=0.5),
        answer=lambda o: ramp(o) if o.timestep == 0 else None,
    )
    world.tick(4)
    assert world.held[-1] is None
    row = world.done[-1].row
    assert row is not None
    # The tick begins in time; the robot's state comes when the limit is past.
    read = world.body.read

    def slow() -> BodyState:
        return BodyState(read().values, row.measured_at + 0.6)

    world.body.read = slow  # type: ignore[method-assign]
    assert world.now + PERIOD - row.measured_at < 0.5
    assert world.tick().hold == "old_input"


def test_the_limits_come_last_and_refuse_a_robot_out_of_its_range() -> None:
    world = World(answer=lambda observation: ramp(observation, slope=90.0))
    world.tick(20)
    steps = np.abs(np.diff([target for _, target in world.body.moves], axis=0))
    assert steps.max() == pytest.approx(5.0)
    assert max(target.max() for _, target in world.body.moves) <= 100.0
    world.body.position = np.array([0.0, 0.0, 150.0])
    step = world.tick()
    assert step.hold == "limits"
    moved = len(world.body.moves)
    world.tick(40)
    assert len(world.body.moves) == moved
    world.body.position = np.zeros(3)
    world.tick(5)
    assert world.held[-1] is None


def test_a_value_that_is_no_number_is_refused() -> None:
    options = LoopOptions(fps=FPS, actions_per_chunk=8, aggregation=choose("average"))
    options = replace(
        options, aggregation=replace(options.aggregation, function=lambda old, new: new * np.nan)
    )
    world = World(options=options)
    world.tick(30)
    assert "limits" in world.held
    assert all(np.isfinite(target).all() for _, target in world.body.moves)


def test_columns_are_put_in_the_robots_order_and_strange_ones_hold() -> None:
    order = ("gripper.pos", "a.pos", "b.pos")

    def named(names: tuple[str, ...], columns: int = 3) -> Callable[[Observation], Chunk]:
        values = np.tile(np.arange(1.0, columns + 1, dtype=np.float32), (8, 1))
        return lambda o: Chunk(o.timestep, o.timestamp, values, names)

    world = World(answer=named(order))
    world.tick(10)
    assert world.body.position == pytest.approx([2.0, 3.0, 1.0])
    for answer in (named(("x", "y", "z")), named((), 4), named((*NAMES, "more"), 4)):
        world = World(answer=answer)
        world.tick(20)
        assert set(world.held) == {"no_action", "columns"}
        assert not world.body.moves


@pytest.mark.parametrize("kind", ["failed", "timed_out", "busy"])
def test_a_server_that_cannot_predict_holds_and_is_asked_again(kind: str) -> None:
    broken = [True]

    def answer(observation: Observation) -> Chunk | ServingError:
        if broken[0]:
            return ServingError(kind, "CUDA out of memory")  # type: ignore[arg-type]
        return ramp(observation)

    world = World(answer=answer)
    world.tick(30)
    assert world.held[1:] == ["server"] * 29
    assert 4 <= len(world.sent) <= 7, "again, but not at each tick"
    assert all(observation.must_go for observation in world.sent)
    broken[0] = False
    world.tick(10)
    assert world.held[-1] is None
    assert world.loop.counters.refusals[kind] >= 4


def test_a_refusal_does_not_stop_what_is_planned(caplog: pytest.LogCaptureFixture) -> None:
    """An observation that could not be predicted from says nothing against earlier ones."""
    world = World(answer=lambda o: ramp(o) if o.timestep == 0 else ServingError("failed", "NaN"))
    world.tick(9)
    assert world.held == ["no_action"] + [None] * 8
    assert "the server refuses: NaN" in caplog.text
    assert world.tick().hold == "server"


def test_an_answer_is_taken_however_many_observations_were_sent_after_its_own() -> None:
    """Below the threshold one goes out at each tick: in 1.4 s of inference 280 at 200 Hz."""
    ticks_to_think, free_at = 280, 0

    def busy_server(observation: Observation) -> Chunk | None:
        nonlocal free_at
        if world.index < free_at:
            return None  # the next prediction is from a newer one
        free_at = world.index + ticks_to_think
        return ramp(observation, rows=1000, slope=0.0)

    options = LoopOptions(fps=FPS, actions_per_chunk=1000, max_input_age_s=1000.0)
    world = World(options=options, answer=busy_server, delay=ticks_to_think)
    world.tick(4000)
    assert world.held == ["no_action"] * ticks_to_think + [None] * (4000 - ticks_to_think)
    assert world.loop.counters.ignored == 0
    assert len(world.sent) > ticks_to_think


def test_answers_to_what_was_never_sent_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    def strange(observation: Observation) -> Chunk:
        return replace(ramp(observation), timestamp=observation.timestamp + 1.0)

    for answer in (
        strange,
        lambda o: replace(ramp(o), timestep=o.timestep + 100),
        lambda o: FeatureReply(o.timestep, o.timestamp, b"features"),
    ):
        world = World(answer=answer)
        caplog.clear()
        world.tick(60)
        assert not world.body.moves
        assert world.loop.counters.ignored >= 2
        assert sum("is ignored" in line for line in caplog.messages) == 1


def test_warnings_come_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    world = World(answer=lambda observation: None)
    world.tick(35)
    lines = [line for line in caplog.messages if "no action is queued" in line]
    assert len(lines) == 4  # 3.5 s


def test_rows_are_cut_to_what_was_asked_for() -> None:
    world = World(answer=lambda observation: ramp(observation, rows=100))
    world.tick(3)
    assert len(world.loop.queue) <= 8
    assert world.loop.queue.capacity == 8


def test_resampling_follows_the_chunk_in_time(caplog: pytest.LogCaptureFixture) -> None:
    def slow(observation: Observation) -> Chunk:
        return replace(ramp(observation, rows=4), dt=0.2)  # two control periods

    world = World(answer=slow)
    world.tick(3)
    assert "--resample True" in caplog.text
    options = LoopOptions(fps=FPS, actions_per_chunk=8, resample=True)
    world = World(options=options, answer=lambda o: slow(o) if o.timestep == 0 else None)
    world.tick(9)
    assert [target[0] for _, target in world.body.moves] == pytest.approx(
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    )
    options = LoopOptions(fps=FPS, actions_per_chunk=8, resample=True, max_input_age_s=0.7)
    World(options=options, answer=slow).tick(2)
    assert "a chunk spans 0.8 s, --max_input_age is 0.7" in caplog.text


def test_the_low_pass_starts_where_the_robot_is_and_again_after_a_hold() -> None:
    body = FakeBody(position=np.array([20.0, 20.0, 20.0]), step=50.0)
    options = LoopOptions(fps=FPS, actions_per_chunk=8, low_pass_hz=0.5)
    sixty = np.full((8, 3), 60.0, np.float32)
    world = World(body, options, lambda o: Chunk(o.timestep, o.timestamp, sixty))
    world.tick(7)
    path = np.array([target for _, target in body.moves])
    assert 20.0 < path[0, 0] < 22.0
    assert path[0, 2] == 60.0, "the gripper is left out"
    world.session = None
    world.tick(2)
    body.position = np.array([-30.0, 0.0, 0.0])  # someone moved it
    world.session = 2
    world.on_the_way = []
    world.tick(2)
    assert -30.0 < body.position[0] < -25.0
    world.tick(60)
    assert body.position == pytest.approx([60.0] * 3, abs=0.2)


def test_an_action_that_is_no_state_is_limited_from_what_was_asked_for() -> None:
    body = FakeBody(action_names=("a.pos", "b.pos", "vacuum"))
    world = World(body, answer=lambda o: ramp(o, slope=2.0))
    world.tick(20)
    assert world.held == ["no_action"] + [None] * 19


def test_what_is_not_measured_starts_from_standing_still() -> None:
    body = FakeBody(action_names=("a.pos", "b.pos", "wheel.vel"))
    body.move = lambda target: body.moves.append((body.now, target))  # type: ignore[method-assign]
    world = World(body, answer=lambda o: ramp(o, slope=0.0))
    chunk = np.zeros((8, 3), np.float32)
    chunk[:, 2] = 60.0
    world.answer = lambda o: Chunk(o.timestep, o.timestamp, chunk)
    world.tick(4)
    assert [target[2] for _, target in body.moves] == [5.0, 10.0, 15.0]
    world.session = None
    world.tick(2)
    world.session = 2
    world.tick(3)
    assert [target[2] for _, target in body.moves[3:]] == [5.0, 10.0], "from 0 again after a hold"


DELAYS = st.lists(st.one_of(st.none(), st.integers(1, 25)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    delays=DELAYS,
    limit=st.floats(0.15, 3.0),
    name=st.sampled_from(["weighted_average", "latest_only", "oldest"]),
    silent=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=2),
    lost=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 6)), max_size=2),
)
def test_no_action_is_ever_computed_from_input_older_than_its_limit(
    delays: list[int | None],
    limit: float,
    name: str,
    silent: list[tuple[int, int]],
    lost: list[tuple[int, int]],
) -> None:
    """Whatever the network does, each value sent to the robot tells which inputs went into it."""
    # Each answer says when its observation was made; "oldest" keeps the oldest that went in.
    oldest = Aggregation("oldest", np.minimum)
    options = LoopOptions(
        fps=FPS,
        actions_per_chunk=8,
        aggregation=oldest if name == "oldest" else choose(name),
        max_input_age_s=limit,
    )
    body = FakeBody(step=1000.0)
    world = World(body, options)
    tried = iter(range(10_000))

    def answer(observation: Observation) -> Chunk | None:
        delay = delays[next(tried) % len(delays)]
        if delay is None:
            return None
        world.delay = delay
        stamps = np.full((8, 3), world.now - 100.0, np.float32)
        return Chunk(observation.timestep, observation.timestamp, stamps)

    world.answer = answer
    session = 1
    for index in range(100):
        away = any(begin <= index < begin + ticks for begin, ticks in lost)
        session += world.session is None and not away
        world.session = None if away else session
        for begin, ticks in silent:
            if index == begin:
                body.silent_since["front"] = body.now
            if index == begin + ticks:
                body.silent_since.clear()
        step = world.tick()
        assert (step.hold is None) == (step.target is not None)
        if step.row is not None:
            assert world.now - step.row.measured_at <= limit + 1e-9
            assert not away
            # The pictures may be older than the rest; what they say is not younger than this.
            assert step.row.action[0] + 100.0 >= step.row.measured_at - 1e-4
            if name != "weighted_average":
                assert world.now - (step.row.action[0] + 100.0) <= limit + 1e-4
        if away:
            assert step.hold == "not_connected"
    assert world.executed == sorted(set(world.executed))


def test_old_input_holds_and_asks_anew() -> None:
    options = LoopOptions(fps=FPS, actions_per_chunk=8, max_input_age_s=0.35)
    answers = [True]
    world = World(options=options, answer=lambda o: ramp(o) if answers[0] else None)
    world.tick(3)
    answers[0] = False
    world.tick(6)
    assert "old_input" in world.held
    world.sent.clear()
    answers[0] = True
    world.tick(25)
    assert world.sent[0].must_go
    assert world.held[-1] is None


def test_by_default_the_limit_is_the_span_of_a_chunk_and_a_second() -> None:
    assert LoopOptions(fps=30, actions_per_chunk=50).input_age_limit_s == pytest.approx(50 / 30 + 1)
