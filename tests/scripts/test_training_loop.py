"""The loop of every stage: reports, rates, and going on from where it was left."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.training.loop import Report, Schedule, batch_at, descend, load_state

WANTED = torch.tensor([3.0, -1.0])


class Line(nn.Module):
    """Two weights, to become `WANTED`; and one that is not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)


def go(
    path: Path,
    report: Report,
    steps: int = 10,
    every: int = 4,
    spoiled: int = -1,
    drawn: list[int] | None = None,
) -> Line:
    """Train a new line from where `path` was left."""
    model = Line()

    def draw(step: int) -> Tensor:
        if drawn is not None:
            drawn.append(step)
        return torch.randn(2, generator=torch.Generator().manual_seed(step))

    def loss_of(step: int, noise: Tensor) -> Tensor:
        wrong = model.weight - WANTED + 0.1 * noise
        return wrong.square().sum() * (float("nan") if step == spoiled else 1.0)

    def judge() -> dict[str, float]:
        return {"error": float((model.weight - WANTED).detach().norm())}

    descend(model, Schedule(steps, 2, 0.1, warmup=2), draw, loss_of, judge, path, report, every)
    return model


def test_reports_come_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    drawn: list[int] = []
    model = go(tmp_path / "a.pt", lambda step, figures: told.append((step, figures)), drawn=drawn)
    assert [step for step, _ in told] == [4, 8, 10]
    assert all(list(f) == ["loss", "error", "samples_per_s"] for _, f in told)
    errors = [figures["error"] for _, figures in told]
    assert errors == sorted(errors, reverse=True)
    # The mean of the steps since the report before: no sum of more or fewer.
    assert told[0][1]["loss"] == pytest.approx(10.0, abs=2.0)
    assert told[2][1]["loss"] < told[1][1]["loss"] < told[0][1]["loss"]
    assert drawn == list(range(10))
    assert model.fixed.item() == 1.0
    assert model.training


def test_it_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def stop(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole = go(tmp_path / "whole.pt", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts.pt", stop)
    told: list[int] = []
    drawn: list[int] = []
    parts = go(tmp_path / "parts.pt", lambda step, _: told.append(step), drawn=drawn)
    assert (told, drawn) == ([8, 10], [4, 5, 6, 7, 8, 9])
    assert torch.equal(whole.weight, parts.weight)
    # It is over: nothing is done or drawn any more.
    told.clear()
    drawn.clear()
    again = go(tmp_path / "parts.pt", lambda step, _: told.append(step), drawn=drawn)
    assert torch.equal(again.weight, parts.weight)
    assert (told, drawn) == ([], [])


def test_one_state_is_not_trained_by_two(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused: list[str] = []

    def another(_: int, __: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="another training is at work") as caught:
            go(path, lambda *_: None)
        refused.append(str(caught.value))
        go(tmp_path / "b.pt", lambda *_: None)  # another stage may be, beside it

    go(path, another, steps=4)
    assert len(refused) == 1 and str(path) in refused[0]
    go(path, lambda *_: None)  # that is over


def test_the_state_is_what_it_always_was(tmp_path: Path) -> None:
    go(tmp_path / "a.pt", lambda *_: None)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["a.pt"]
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(state) == ["model", "optimizer", "step"]
    assert state["step"] == 10
    assert set(state["model"]) == {"weight", "fixed"}
    (group,) = state["optimizer"]["param_groups"]
    # The rate of the last step, and the decay.
    assert group["lr"] == pytest.approx(Schedule(10, 2, 0.1, warmup=2).at(9))
    assert group["weight_decay"] == 0.02


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    model = Line()
    lengths = []

    def report(_: int, __: dict[str, float]) -> None:
        assert model.weight.grad is not None
        lengths.append(float(model.weight.grad.norm()))

    descend(
        model, Schedule(3, 1, 0.1, warmup=1), lambda _: None,
        lambda _, __: 100.0 * (model.weight - WANTED).square().sum(), dict,
        tmp_path / "a.pt", report, every=1,
    )  # fmt: skip
    assert lengths == pytest.approx([1.0] * 3, abs=1e-3)


def test_a_loss_that_is_no_number_ends_it_and_leaves_the_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no number by step 8"):
        go(tmp_path / "a.pt", lambda *_: None, spoiled=6)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 4


def state(**changed: object) -> bytes:
    model = Line()
    whole = {
        "model": model.state_dict(),
        "optimizer": torch.optim.AdamW([model.weight]).state_dict(),
        "step": 3,
    }
    path = Path("state.pt")
    torch.save(whole | changed, path)
    return path.read_bytes()


@pytest.mark.parametrize("what", ["empty", "text", "pickle", "short", "list", "model", "optimizer"])
def test_what_is_no_state_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = nn.Linear(3, 3)
    torch.save([1, 2], "list.pt")
    content = {
        "empty": b"",
        "text": b"no state",
        "pickle": pickle.dumps({"model": Path("x")}, protocol=2),
        "short": state()[:700],
        "list": Path("list.pt").read_bytes(),
        "model": state(model=other.state_dict()),
        "optimizer": state(optimizer=torch.optim.AdamW(other.parameters()).state_dict()),
    }[what]
    path = tmp_path / "look.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--work") as raised:
        go(path, lambda *_: None)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == content


def test_a_state_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state()
    model = Line()
    assert load_state(tmp_path / "state.pt", model, torch.optim.AdamW([model.weight])) == 3
    assert load_state(tmp_path / "no.pt", model, torch.optim.AdamW([model.weight])) == 0


def test_each_pass_takes_every_sample_once_in_another_order() -> None:
    picked = torch.cat([batch_at(step, 10, 4) for step in range(5)])
    first, second = picked[:10].tolist(), picked[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert torch.equal(batch_at(2, 10, 4), picked[8:12])
