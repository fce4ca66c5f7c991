"""Eq. 4: how much the selected features help the task."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jscpt_peft.choices import check_choice

# Value of Δ where the selected features do exactly as well as the original ones. The paper says 0.5, but its own
# formula gives σ(exp(0)) = 0.731 and never falls below 0.5.
NEUTRAL_EFFECT = {"literal": 1 / (1 + math.exp(-1)), "sigmoid": 0.5}

# exp overflows; at ±10, σ(exp(d)) is within 2e-5 of its limits 1 and 0.5.
LARGEST_LOSS_DIFFERENCE = 10.0


def causal_effect(loss_original: Tensor, loss_selected: Tensor, kind: str = "literal") -> Tensor:
    """Causal effect Δ of the selected prompt features (paper, Eq. 4).

    With `d = loss_original - loss_selected`, "literal" is `σ(exp(d))`, d clamped to ±10, as Eq. 4 is printed; it lies
    in (0.5, 1]. "sigmoid" is `σ(d)`, in (0, 1), with the neutral point 0.5 that the paper's text speaks of. In both,
    a value above `NEUTRAL_EFFECT[kind]` means that the selected features give the smaller loss.

    Args:
        loss_original: `[N]`, each task's loss on its original features x, L(x).
        loss_selected: `[N]`, each task's loss on its selected features x̄, L(x̄).
        kind: "literal" or "sigmoid".

    Returns:
        `[N]`; NaN where a loss is NaN (a task absent from the batch).

    Raises:
        ValueError: `kind` is neither, or the shapes differ.

    Example:
        >>> causal_effect(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.7311, 0.9381])
    """
    check_choice("kind", kind, NEUTRAL_EFFECT)
    if loss_original.shape != loss_selected.shape:
        raise ValueError(
            f"`loss_original` and `loss_selected` must have one loss a task each, got the shapes "
            f"{tuple(loss_original.shape)} and {tuple(loss_selected.shape)}"
        )
    difference = loss_original - loss_selected
    if kind == "sigmoid":
        return torch.sigmoid(difference)
    return torch.sigmoid(difference.clamp(-LARGEST_LOSS_DIFFERENCE, LARGEST_LOSS_DIFFERENCE).exp())
