"""The implicit gradient of the dev loss with respect to Ω, for a JSCPT model (Eqs. 10-11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from jscpt_peft.model.backbones.double_backward import full_precision
from jscpt_peft.model.heads import TaskParameters
from jscpt_peft.scheduling import InverseHVP, hypergradient, safeguarded_inverse_hvp
from jscpt_peft.scheduling.hypergradient import HessianVectorProduct, flatten

from .calibrated_loss import at_temperatures, best_temperatures
from .own_loss import OwnLoss
from .task_gradients import Batch, scheduled_gradient, task_gradients, task_products
from .task_sums import TaskMeans


def dev_gradient(
    model: PeftModel,
    parameters: Sequence[Tensor],
    chunks: Sequence[Batch],
    own_loss: OwnLoss | None = None,
    calibrated: bool = False,
) -> tuple[TaskMeans, Tensor]:
    """The tasks' losses on a dev batch and the gradient `[P]` of their sum L_dev (Eq. 8), in float32.

    A task that is not finite there is left out of the sum (`TaskMeans.nonfinite`); penalties of a head are no part.

    Args:
        model: the JSCPT model.
        parameters: θ.
        chunks: this process's dev images, in pieces that go through the model one after the other.
        own_loss: takes the place of Eq. 3.
        calibrated: the cross-entropy at each task's best temperature takes its place.
    """
    sums = None  # one at a time: each holds the gradients of all tasks
    with full_precision(chunks[0].pixel_values.device.type):
        if calibrated:
            own_loss = at_temperatures(best_temperatures(model, chunks))
        for chunk in chunks:
            part, task_parameters = task_gradients(model, chunk, own_loss=own_loss, penalised=False)
            sums = part.detach() if sums is None else sums + part.detach()
    means = sums.over_processes()[0].means()
    gradients = scheduled_gradient(task_parameters, parameters, means.gradients, torch.ones_like(means.losses))
    return means, flatten(gradients)


def implicit_gradient(
    task_parameters: TaskParameters,
    parameters: Sequence[Tensor],
    step_gradients: TaskParameters,
    weights: Tensor,
    omega: Sequence[nn.Parameter],
    dev: Tensor,
    product: HessianVectorProduct | None,
    terms: int,
    step_size: float,
    damping: float = 0.0,
    power_iterations: int = 3,
    divergence_guard: bool = True,
) -> tuple[tuple[Tensor, ...], InverseHVP]:
    """∇_Ω L_dev by the truncated Neumann series (Eq. 11), one gradient per parameter of Ω.

    Args:
        task_parameters: `model.task_parameters()`.
        parameters: θ.
        step_gradients: g_i of the whole lower step.
        weights: `[N]` φ(Ω) with its graph.
        omega: Ω.
        dev: `[P]` gradient of the dev loss with respect to θ.
        product: v -> ∇²_θ (Σ_i φ_i L_i) v; not needed with `terms=0`.
        terms: H; 0 replaces the inverse Hessian by `step_size` and makes no Hessian-vector product.
        step_size, damping, power_iterations, divergence_guard: as for `safeguarded_inverse_hvp`.
    """
    if product is None and terms > 0:
        raise ValueError(f"`product` is missing, which `terms` = {terms} needs.")
    inverse = safeguarded_inverse_hvp(product, dev, terms, step_size, damping, power_iterations, divergence_guard)
    products = task_products(task_parameters, parameters, step_gradients, inverse.vector)
    return hypergradient(weights, products.to(weights.dtype), omega), inverse
