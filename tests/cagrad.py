"""CAGrad's weights by search over the simplex: no solver, and none of the package's code."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def cagrad_weights(gradients: Tensor, c: float, rounds: int = 12, cells: int = 40) -> Tensor:
    """Weights `[N]` of d = g₀ + c‖g₀‖/‖g_w‖·g_w, which maximises min_i <g_i, d> in the ball ‖d − g₀‖ <= c‖g₀‖.

    w minimises g_w·g₀ + c‖g₀‖‖g_w‖ over the simplex (CAGrad, Eq. 5): a grid of it, refined around its best point.

    Args:
        gradients: `[N, P]` in float64, N of 2 or 3.
        c: relative radius of the ball.
        rounds: grids, each five times as fine as the one before.
        cells: of a grid along each side.
    """
    tasks = len(gradients)
    mean = gradients.mean(0)
    radius = c * mean.norm()
    centre, width = torch.full((tasks - 1,), 0.5, dtype=torch.float64), 1.0
    for _ in range(rounds):
        line = torch.linspace(-width / 2, width / 2, cells + 1, dtype=torch.float64)
        points = centre + torch.tensor(list(itertools.product(line.tolist(), repeat=tasks - 1)), dtype=torch.float64)
        points = torch.cat([points, 1 - points.sum(1, keepdim=True)], dim=1)
        points = points[(points >= -1e-12).all(1)]
        combined = points @ gradients
        costs = combined @ mean + radius * combined.norm(dim=1)
        best = points[costs.argmin()]
        centre, width = best[:-1], width / 5
    return 1 / tasks + radius / (best @ gradients).norm() * best
