"""From noise to a chunk: along the flow, and along the flow guided by the chunk before it.

Guidance is that of real-time chunking (Black, Galliker, Levine 2025, arXiv 2506.07339, equations 2
to 5). Flow times τ run from 0 (noise) to 1 (chunk). Pure functions: noise comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BETA", "STEPS", "Velocity", "guidance_weight", "guided", "sample", "soft_mask"]

Velocity = Callable[[Tensor, float], Tensor]
"""Noisy rows (B, H, A) and a flow time to velocities (B, H, A)."""

STEPS = 5
"""Euler steps; as in the paper's experiments."""
BETA = 5.0
"""The greatest weight of guidance; as in the paper's experiments."""


def sample(velocity: Velocity, noise: Tensor, steps: int = STEPS) -> Tensor:
    """Follow the flow from noise (B, H, A) in so many Euler steps; ValueError for none."""
    _check_steps(steps)
    rows = noise
    for step in range(steps):
        rows = rows + velocity(rows, step / steps) / steps
    return rows


def soft_mask(rows: int, frozen: int, overlap: int) -> Tensor:
    """How much each row of the new chunk (rows,) is bound to the one before it.

    1 for the rows that will be executed before the new chunk is there; 0 where the chunk before
    says nothing; between the two, with c = (overlap − i) / (overlap − frozen + 1),
    c·(eᶜ − 1)/(e − 1): equation 5 of the paper, where `frozen` is d and `overlap` is H − s.

    Args:
        rows: H, rows of the new chunk.
        frozen: d, how many of them are executed as the chunk before has them.
        overlap: how many of them the chunk before has.

    Raises:
        ValueError: not 0 <= frozen <= overlap <= rows.
    """
    if not 0 <= frozen <= overlap <= rows:
        raise ValueError(
            f"frozen rows ({frozen}) are some of those that overlap ({overlap}), which are some "
            f"of a chunk's {rows}"
        )
    place = torch.arange(rows)
    c = ((overlap - place) / (overlap - frozen + 1)).clamp(0.0, 1.0)
    decayed = c * torch.expm1(c) / (math.e - 1.0)
    return torch.where(place < frozen, torch.ones(()), decayed)


def guidance_weight(tau: float, beta: float = BETA) -> float:
    """The weight of guidance at a flow time: min(β, (1 − τ)/(τ·r²)), equations 2 and 4.

    r² = (1 − τ)²/(τ² + (1 − τ)²) is the variance of a chunk about what is expected of it at τ, were
    chunks normally distributed with a variance of 1 (Song et al. 2023, ΠGDM; Pokle et al. 2024,
    arXiv 2310.04432, for flows). Without β it grows beyond all bounds at both ends.
    """
    left = 1.0 - tau
    if tau <= 0.0 or left <= 0.0:
        return beta
    return min(beta, (tau * tau + left * left) / (tau * left))


def guided(
    velocity: Velocity,
    noise: Tensor,
    previous: Tensor,
    mask: Tensor,
    steps: int = STEPS,
    beta: float = BETA,
) -> Tensor:
    """Follow the flow from noise, drawn towards the rows of the chunk before.

    At each step the chunk that is expected at the end, â = x + (1 − τ)·v(x, τ), is compared with
    the previous rows; the masked error goes back through the denoiser by a vector-Jacobian
    product, and the result, weighted, is added to the velocity (equations 2 and 3).

    Args:
        velocity: the flow; differentiable with respect to the rows.
        noise: (B, H, A).
        previous: rows of the chunk before (B, H, A), aligned in time; where the mask is 0 any.
        mask: (H,), of `soft_mask`.
        steps: Euler steps.
        beta: the greatest weight.

    Returns:
        (B, H, A), without a graph.

    Raises:
        ValueError: shapes that do not fit, no steps, a negative β.
    """
    _check_steps(steps)
    if previous.shape != noise.shape or mask.shape != noise.shape[1:2]:
        raise ValueError(
            f"previous rows are {tuple(previous.shape)} and the mask {tuple(mask.shape)}, for a "
            f"chunk of {tuple(noise.shape)}"
        )
    if not beta >= 0.0:
        raise ValueError(f"the greatest weight of guidance must not be below 0: {beta}")
    # Rows that are not to be followed may hold anything, also what is not finite.
    bound = mask.to(noise).view(1, -1, 1)
    wanted = torch.where(bound > 0, previous, torch.zeros_like(previous)).detach()
    rows = noise.detach()
    for step in range(steps):
        tau = step / steps
        with torch.enable_grad():
            rows.requires_grad_(True)
            speed = velocity(rows, tau)
            expected = rows + (1.0 - tau) * speed
            error = bound * (wanted - expected.detach())
            (drawn,) = torch.autograd.grad(expected, rows, error)
        speed = speed.detach() + guidance_weight(tau, beta) * drawn
        rows = rows.detach() + speed / steps
    return rows


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a chunk takes 1 step at least, not {steps}")
