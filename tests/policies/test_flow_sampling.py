"""Sampling along a flow, and guided by a chunk under execution: against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from policies.flow.sampling import BETA, guidance_weight, guided, sample, soft_mask

ROWS, COLUMNS = 8, 3


def noise(seed: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, ROWS, COLUMNS), generator=generator, dtype=torch.float64)


def gaussian(mean: Tensor, variance: float):  # type: ignore[no-untyped-def]
    """The exact velocity of the flow from noise to a normal distribution, and â's slope."""

    def slope(tau: float) -> float:
        return tau * variance / (tau**2 * variance + (1 - tau) ** 2)

    def velocity(rows: Tensor, tau: float) -> Tensor:
        expected = mean + slope(tau) * (rows - tau * mean)
        return (expected - rows) / (1 - tau)

    return velocity, slope


def test_the_mask_is_that_of_the_paper() -> None:
    mask = soft_mask(10, 2, 6)
    assert mask[:2].tolist() == [1.0, 1.0]
    for i in range(2, 6):
        c = (6 - i) / (6 - 2 + 1)
        assert mask[i] == pytest.approx(c * (math.exp(c) - 1) / (math.e - 1), abs=1e-6)
    assert mask[6:].tolist() == [0.0] * 4
    assert (mask[1:] <= mask[:-1]).all()


@pytest.mark.parametrize(
    ("frozen", "overlap", "expected"),
    [(0, 0, [0.0] * 4), (4, 4, [1.0] * 4), (2, 2, [1.0, 1.0, 0.0, 0.0])],
)
def test_masks_at_the_edges(frozen: int, overlap: int, expected: list[float]) -> None:
    assert soft_mask(4, frozen, overlap).tolist() == expected


@pytest.mark.parametrize(("frozen", "overlap"), [(-1, 2), (3, 2), (0, 5)])
def test_masks_that_there_are_not(frozen: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="frozen rows"):
        soft_mask(4, frozen, overlap)


def test_the_weight_of_guidance_is_clipped() -> None:
    # (1 - t) / (t r²) with r² = (1 - t)² / (t² + (1 - t)²)
    for tau in (0.3, 0.5, 0.7):
        spread = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        assert guidance_weight(tau, 100.0) == pytest.approx((1 - tau) / (tau * spread))
    assert guidance_weight(0.0) == guidance_weight(1e-6) == guidance_weight(1.0) == BETA
    assert guidance_weight(0.5, 1.5) == 1.5


def test_a_flow_to_one_chunk_ends_there() -> None:
    # All the data is one chunk: the flow is straight, and any number of steps follows it.
    chunk = noise(5)

    def velocity(rows: Tensor, tau: float) -> Tensor:
        return (chunk - rows) / (1 - tau)

    for steps in (1, 5, 7):
        assert torch.allclose(sample(velocity, noise(), steps), chunk, atol=1e-12)


def test_samples_are_distributed_as_the_data() -> None:
    mean = torch.full((ROWS, COLUMNS), 0.7, dtype=torch.float64)
    velocity, _ = gaussian(mean, 0.25)
    drawn = sample(velocity, noise(1, batch=4000), steps=100)
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_guidance_is_exact_where_its_assumption_holds() -> None:
    """Chunks of variance 1: unclipped guidance then goes straight to what is frozen."""
    velocity, _ = gaussian(torch.zeros(ROWS, COLUMNS, dtype=torch.float64), 1.0)
    previous = noise(2)
    frozen = 3
    mask = soft_mask(ROWS, frozen, frozen)
    for steps in (5, 20):
        rows = guided(velocity, noise(), previous, mask, steps, beta=1e9)
        assert torch.allclose(rows[:, :frozen], previous[:, :frozen], atol=1e-12)
        # Rows of this flow know nothing of each other: the others are as without guidance.
        free = sample(velocity, noise(), steps)
        assert torch.allclose(rows[:, frozen:], free[:, frozen:], atol=1e-12)
    # With 5 steps the weight of each but the first, where nothing can be drawn, is below β = 5.
    rows = guided(velocity, noise(), previous, mask)
    assert torch.allclose(rows[:, :frozen], previous[:, :frozen], atol=1e-12)


def test_guided_steps_of_a_linear_flow() -> None:
    """Variance 0.3, weight clipped, rows bound by halves: each Euler step in closed form."""
    mean = noise(3)[0]
    velocity, slope = gaussian(mean, 0.3)
    previous, mask = noise(2), soft_mask(ROWS, 2, 6)
    steps, beta = 6, 2.5
    rows = noise()
    for step in range(steps):
        tau = step / steps
        expected = mean + slope(tau) * (rows - tau * mean)
        error = mask.double().view(1, -1, 1) * (previous - expected)
        pull = beta if tau == 0 else min(beta, (tau**2 + (1 - tau) ** 2) / (tau * (1 - tau)))
        rows = rows + ((expected - rows) / (1 - tau) + pull * slope(tau) * error) / steps
    assert torch.allclose(guided(velocity, noise(), previous, mask, steps, beta), rows, atol=1e-12)


def test_what_is_drawn_goes_through_the_denoiser() -> None:
    """Rows that go together in the data: those that are free follow those that are frozen."""
    generator = torch.Generator().manual_seed(9)
    turn = torch.linalg.qr(torch.randn((ROWS, ROWS), generator=generator, dtype=torch.float64))[0]
    spread = torch.diag(torch.tensor([6.0] + [0.05] * (ROWS - 1), dtype=torch.float64))
    covariance = turn @ spread @ turn.T
    one = torch.eye(ROWS, dtype=torch.float64)

    def velocity(rows: Tensor, tau: float) -> Tensor:
        gain = tau * covariance @ torch.linalg.inv(tau**2 * covariance + (1 - tau) ** 2 * one)
        return (gain @ rows - rows) / (1 - tau)

    # The data is nearly one shape in some size: half of the rows say which.
    shape = turn[:, :1].expand(ROWS, COLUMNS) * math.sqrt(ROWS)
    previous = torch.stack((2.0 * shape, -2.0 * shape))
    mask = soft_mask(ROWS, ROWS // 2, ROWS // 2)
    rows = guided(velocity, noise(), previous, mask, steps=50, beta=1e3)
    free = sample(velocity, noise(), steps=50)
    after = slice(ROWS // 2, None)
    missed, missed_free = ((x - previous)[:, after].norm() for x in (rows, free))
    assert missed < 0.3 * missed_free


def test_what_has_no_weight_has_no_say() -> None:
    velocity, _ = gaussian(torch.zeros(ROWS, COLUMNS, dtype=torch.float64), 1.0)
    free = sample(velocity, noise())
    anything = torch.full_like(free, float("nan"))
    assert torch.equal(guided(velocity, noise(), anything, torch.zeros(ROWS)), free)
    assert torch.equal(guided(velocity, noise(), noise(4), torch.ones(ROWS), beta=0.0), free)
    assert not guided(velocity, noise(), noise(4), torch.ones(ROWS)).requires_grad


def test_what_does_not_fit_is_refused() -> None:
    velocity, _ = gaussian(torch.zeros(ROWS, COLUMNS, dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match="1 step"):
        sample(velocity, noise(), 0)
    with pytest.raises(ValueError, match="previous rows"):
        guided(velocity, noise(), noise()[:, 1:], torch.ones(ROWS))
    with pytest.raises(ValueError, match="previous rows"):
        guided(velocity, noise(), noise(), torch.ones(ROWS - 1))
    with pytest.raises(ValueError, match="weight of guidance"):
        guided(velocity, noise(), noise(), torch.ones(ROWS), beta=float("nan"))
