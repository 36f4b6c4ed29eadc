"""What is drawn from an episode: the rows, the features, the window, and what is no example."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from policies.qwen_vla.acting import told_of
from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import (
    ActionConfig,
    ExpertConfig,
    PolicyConfig,
    RobotConfig,
    SensorConfig,
)
from policies.qwen_vla.sensor_encoder import SensorEncoder
from scripts.training.act import ActTrainer, Batch, Episodes
from scripts.training.errors import TipMetric
from scripts.training.loop import Schedule
from scripts.training.run import CannotTrain, split_traces
from scripts.training.small import without_dropout
from scripts.training.traces import Trace

SPEEDS = np.array([10.0, -4.0, 3.0, 2.0, 1.0, 0.5])
ROWS, WINDOW, CENTER = 4, 5, 7.0
ROBOT = RobotConfig((CENTER,) * 6, (2.0,) * 6, (4.0,) * 6)
CONFIG = PolicyConfig(
    views=("View3",),
    sensor=SensorConfig(
        window=WINDOW, channels=2 + 12, conv=(8,), layers=1, heads=2, feedforward=8, features=8
    ),
    expert=ExpertConfig(vl_features=1, hidden=8, layers=1, heads=2, feedforward=8, rows=ROWS),
    action=ActionConfig(space="joint_position", dt=0.1),
    robot=ROBOT,
)
DELTA = ("joint_delta", None)


def trace(
    span_s: float = 6.0,
    excluded: Sequence[tuple[float, float]] = (),
    seen_s: Sequence[float] = (0.0,),
    channels: int = 2,
) -> Trace:
    """Joints that go evenly, so that every value says of which moment it is."""
    times = np.arange(0.0, span_s + 1e-9, 0.01)
    apart = np.zeros(len(times), bool)
    for begin, end in excluded:
        apart |= (times >= begin - 1e-9) & (times < end - 1e-9)

    def window(at_s: float, samples: int, _: np.random.Generator) -> NDArray[np.float32]:
        return np.full((samples, channels), at_s, np.float32)

    return Trace(
        source="a trace",
        goal_deg=times[-1] * SPEEDS,
        times_s=times,
        joints_deg=times[:, None] * SPEEDS,
        excluded=apart,
        first_s=0.1,
        window=window,
        seen_s=np.array(seen_s),
        pictures={"View3": [b""] * len(seen_s)},
    )


def drawn(made: Trace, count: int = 400, lag_s: float = 0.0) -> tuple[Batch, NDArray[np.float64]]:
    """A batch whose features are the looks' times, and the moments of its ticks."""
    features = torch.tensor(made.seen_s, dtype=torch.float32).unsqueeze(1)
    numbers = np.zeros(len(made.seen_s), np.int64)
    episodes = Episodes(CONFIG, [made], features, numbers, made.seen_s, lag_s)
    batch = episodes.draw(count, np.random.default_rng(0))
    return batch, batch.start_deg[:, 0].double().numpy() / SPEEDS[0]


def test_rows_are_where_the_arm_is_a_row_and_its_lag_later() -> None:
    batch, at = drawn(trace(), lag_s=0.03)
    due = at[:, None] + 0.03 + 0.1 * np.arange(1, ROWS + 1)
    valid = batch.valid.numpy()
    wanted = (due[..., None] * SPEEDS)[valid]
    assert batch.rows_deg.numpy()[valid] == pytest.approx(wanted, abs=1e-3)
    # Rows beyond the end are no examples, all others are.
    assert (valid == (due <= 6.0 + 1e-4)).mean() > 0.995
    assert valid[:, 0].all()
    assert at.min() >= 0.1 - 1e-5


def test_what_is_excluded_is_no_example() -> None:
    pushed = ((1.0, 1.5), (3.0, 3.2))
    batch, at = drawn(trace(excluded=pushed))
    due = at[:, None] + 0.1 * np.arange(1, ROWS + 1)
    for begin, end in pushed:
        assert not ((at > begin + 1e-4) & (at < end - 1e-4)).any()
        before = at < begin
        # A push that has not begun is not foreseen; what comes after it is not told of either.
        assert not batch.valid.numpy()[before & (at > begin - 0.5)][
            (due > begin + 1e-3)[before & (at > begin - 0.5)]
        ].any()
    ticks = (at > 1.5) & (at < 1.6)
    assert ticks.any(), "the moment a push ends is worth most"
    assert batch.valid.numpy()[ticks].all()


def test_where_an_expert_was_asked_it_is_the_example() -> None:
    made = dataclasses.replace(
        trace(),
        ticks_s=np.array([0.05, 1.0, 2.0]),
        rows_deg=np.arange(3 * 6 * 6, dtype=np.float32).reshape(3, 6, 6),
    )
    batch, at = drawn(made)
    # Before there is a whole window nothing is learned.
    assert set(at.round(3)) == {1.0, 2.0}
    for tick in (1, 2):
        own = np.abs(at - tick) < 1e-3
        assert (batch.rows_deg.numpy()[own] == made.rows_deg[tick][:ROWS]).all()
    assert batch.valid.all()
    # Of an expert who looks less far, the last row is repeated, and is no example.
    batch, at = drawn(dataclasses.replace(made, rows_deg=made.rows_deg[:, :3]))
    assert batch.valid.tolist() == [[True, True, True, False]] * len(at)
    assert torch.equal(batch.rows_deg[:, 3], batch.rows_deg[:, 2])
    other = dataclasses.replace(CONFIG, action=ActionConfig(space="joint_position", dt=0.05))
    with pytest.raises(ValueError, match=r"every 0\.1 s, and the policy's rows are 0\.05"):
        Episodes(other, [made], torch.zeros(1, 1), np.zeros(1, int), np.zeros(1), 0.0)


def test_a_goal_is_told_as_the_features_of_the_look_say() -> None:
    robot = dataclasses.replace(ROBOT, tool_mm=(0.0, 0.0, 70.0))
    assert CONFIG.sensor is not None
    sensor = dataclasses.replace(CONFIG.sensor, channels=2 + 18)
    config = dataclasses.replace(CONFIG, robot=robot, sensor=sensor)
    expert = ActionExpert(CONFIG.expert, sensor.features, 7, reads_goal=True)
    made = trace(seen_s=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    features = torch.tensor(made.seen_s, dtype=torch.float32).unsqueeze(1)
    numbers = np.zeros(6, np.int64)
    episodes = Episodes(config, [made], features, numbers, made.seen_s, 0.0, expert)
    batch = episodes.draw(50, np.random.default_rng(0))
    goals = expert.goal_deg(batch.features.unsqueeze(1))
    assert goals is not None
    for joints, goal, window in zip(
        batch.start_deg.numpy(), goals.detach().numpy(), batch.windows.numpy(), strict=True
    ):
        told = told_of(robot, joints, (), goal)
        assert window[0, -6:] == pytest.approx(told[-6:], abs=1e-5)
    assert len(np.unique(batch.features.numpy())) > 3


def test_features_are_of_a_look_of_the_last_two_seconds() -> None:
    batch, at = drawn(trace(seen_s=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)), count=1000)
    age = at - batch.features[:, 0].double().numpy()
    assert age.min() > -1e-5
    assert age.max() < 2.0 + 1e-5
    # Of all ages alike.
    assert np.histogram(age, 4, (0.0, 2.0))[0].min() > 180


def test_an_old_look_is_better_than_none_and_the_future_is_not_seen() -> None:
    batch, at = drawn(trace(seen_s=(0.0, 0.5, 5.5)))
    seen = batch.features[:, 0].numpy()
    assert (seen[(at > 2.6) & (at < 5.4)] == 0.5).all()
    assert (seen <= at + 1e-5).all()


def test_a_window_ends_at_the_tick_and_tells_joints_and_speeds() -> None:
    batch, at = drawn(trace(), count=2000)
    windows = batch.windows.double().numpy()
    assert windows.shape == (2000, WINDOW, 14)
    assert windows[:, :, 0] == pytest.approx(np.repeat(at[:, None], WINDOW, axis=1), abs=1e-4)
    joints = (at[:, None] * SPEEDS - CENTER) / 2.0
    assert windows[:, 0, 2:8] == pytest.approx(joints, abs=1e-3)
    speeds = windows[:, -1, 8:]
    known = np.abs(speeds).any(axis=1)
    assert speeds[known] == pytest.approx(np.tile(SPEEDS / 4.0, (known.sum(), 1)), abs=1e-3)
    # Not every runtime knows speeds.
    assert 0.05 < 1 - known.mean() < 0.11


def test_a_short_window_begins_with_its_first_sample_again() -> None:
    made = trace()

    def window(at_s: float, samples: int, _: np.random.Generator) -> NDArray[np.float32]:
        return np.array([[1.0, 1.0], [2.0, 2.0]], np.float32)

    batch, _ = drawn(dataclasses.replace(made, window=window), count=3)
    assert batch.windows[0, :, 0].tolist() == [1.0, 1.0, 1.0, 1.0, 2.0]


def test_samples_of_another_size_are_said() -> None:
    with pytest.raises(ValueError, match="a trace: 9 values in a sample, the policy takes 2"):
        drawn(trace(channels=9), count=1)


@pytest.mark.parametrize("made", [trace(span_s=0.15), trace(excluded=[(0.0, 7.0)])])
def test_an_episode_that_teaches_nothing_is_not_waited_for(made: Trace) -> None:
    with pytest.raises(ValueError, match="nothing to learn acting from"):
        drawn(made)


def test_rows_mean_what_the_checkpoint_says() -> None:
    generator = torch.Generator().manual_seed(0)
    start = 10.0 * torch.randn((3, 6), generator=generator)
    given, deltas = [], []
    for space, robot in (("joint_position", CONFIG.robot), ("joint_position", None), DELTA):
        action = ActionConfig(space=space)  # type: ignore[arg-type]
        config = dataclasses.replace(CONFIG, action=action, robot=robot)
        assert config.sensor is not None
        expert = ActionExpert(config.expert, config.sensor.features, 7)
        trainer = ActTrainer(config, SensorEncoder(config.sensor), expert).eval()
        torch.nn.init.normal_(expert.pos_embed)
        batch = Batch(
            torch.ones(3, 1),
            torch.ones(3, WINDOW, 14),
            start,
            torch.zeros(3, ROWS, 6),
            torch.ones(3, ROWS, dtype=torch.bool),
        )
        with torch.no_grad():
            given.append(trainer(batch))
            deltas.append(expert(torch.ones(3, 1, 1), trainer.sensor(batch.windows))[1][..., :6])
    begin = start.unsqueeze(1)
    assert torch.allclose(given[0], begin + deltas[0])
    assert torch.allclose(given[1], deltas[1])
    assert torch.allclose(given[2][:, 2:3], begin + deltas[2][:, :3].sum(dim=1, keepdim=True))
    assert torch.allclose(given[2][:, :1], begin + deltas[2][:, :1])


def test_what_is_no_example_teaches_nothing(tmp_path: Path) -> None:
    made = trace(excluded=[(4.0, 7.0)])
    after = made.times_s[:, None] > 4.0
    other = dataclasses.replace(made, joints_deg=np.where(after, 99.0, made.joints_deg))
    assert CONFIG.sensor is not None
    weights = []
    for number, one in enumerate((made, other)):
        torch.manual_seed(0)
        expert = ActionExpert(CONFIG.expert, CONFIG.sensor.features, 7)
        trainer = ActTrainer(CONFIG, SensorEncoder(CONFIG.sensor), expert)
        for module in (trainer.sensor, trainer.expert):
            without_dropout(module)
        episodes = Episodes(CONFIG, [one], torch.zeros(1, 1), np.zeros(1, int), np.zeros(1), 0.0)
        kept = [episodes.draw(8, np.random.default_rng(0))]
        metric = TipMetric(np.zeros(6), (0.0, 0.0, 70.0))
        path = tmp_path / f"{number}.pt"
        before = expert.fusion_proj.weight.detach().clone()
        trainer.learn(episodes, kept, Schedule(2, 64, 1e-3), metric, path, lambda *_: None)
        weights.append(expert.fusion_proj.weight.detach())
        assert not torch.equal(weights[-1], before)
    assert torch.equal(*weights)


def test_a_few_episodes_are_parted_too() -> None:
    look = dataclasses.replace(
        trace(), times_s=np.zeros(1), joints_deg=np.zeros((1, 6)), excluded=np.zeros(1, bool)
    )
    assert not look.moves
    made = [trace(span_s=1.0 + 0.1 * number) for number in range(4)]
    for count in (2, 3, 4):
        for share in (0.001, 0.08, 0.499):
            split = split_traces([*made[:count], look], share)
            assert any(one.moves for one in split.learned)
            assert any(one.moves for one in split.kept)
            assert len(split.learned) + len(split.kept) == count + 1
    # It stays the same whatever order they come in.
    one, other = split_traces(made, 0.001), split_traces(made[::-1], 0.001)
    assert one.kept[0] is other.kept[0]
    with pytest.raises(CannotTrain, match="two at least"):
        split_traces([made[0], look], 0.08)
