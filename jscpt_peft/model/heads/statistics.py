"""Statistics of one task's images in a batch, for the penalties of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-6  # beside variances: a feature that does not vary correlates with none


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlations `[p, q]` over rows, between features `[b, p]` and features `[b, q]`; 0 for a single row."""
    precise = torch.promote_types(one.dtype, torch.float32)
    with torch.autocast(one.device.type, enabled=False):
        one, other = (each.to(precise) - each.to(precise).mean(0) for each in (one, other))
        one, other = (each / (each.square().mean(0) + EPS).sqrt() for each in (one, other))
        return one.T @ other / len(one)


def of_each_task(statistic: Callable[..., Tensor], num_tasks: int, task_ids: Tensor, *rows: Tensor) -> Tensor:
    """The `statistic` of each task's own rows, of those `[B, ...]` of the tasks `[B]`: `[N]`, 0 where it has none."""
    own = [task_ids == task for task in range(num_tasks)]
    zero = rows[0].new_zeros(())
    return torch.stack([statistic(*(each[mine] for each in rows)) if bool(mine.any()) else zero for mine in own])
