"""Cross-entropy at the temperature at which it is least, per task: a D_dev loss that confidence alone cannot lower.

The cross-entropy of an overconfident model falls when its logits shrink, whatever shrinks them. By it an update of Ω
favours a task with wrong labels, whose gradients spread confidence. What is left at the best temperature (temperature
scaling: Guo, Pleiss, Sun and Weinberger, ICML 2017) is how well the classes are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from jscpt_peft.model.losses import task_loss_sums

from .distributed import sum_over_processes
from .own_loss import OwnLoss, TaskOutput
from .task_gradients import Batch

TEMPERATURES = torch.arange(-8, 25).div(4).exp2()  # 1/4 to 64, bounds where all or none of a task's images are right


def best_temperatures(model: PeftModel, chunks: Sequence[Batch]) -> Tensor:
    """Of `TEMPERATURES`, the one per task `[N]` at which its images, in all processes, have the least cross-entropy.

    Any one where a task has no image, or logits that are not finite. `chunks` are this process's images, in pieces
    that go through the model one after the other.
    """
    sums = torch.zeros(len(TEMPERATURES), len(model.active_jscpt_config.tasks), device=chunks[0].labels.device)
    with torch.no_grad():
        for chunk in chunks:
            rows = chunk.tasks
            logits = model.classify(chunk.pixel_values, rows, chunk.labels, present_tasks_only=True).logits
            each = [task_loss_sums(logits / float(t), chunk.labels, rows, sums.shape[1])[0] for t in TEMPERATURES]
            sums = sums + torch.stack(each)
    [sums] = sum_over_processes([sums])
    return TEMPERATURES.to(sums.device)[sums.argmin(0)]


def at_temperatures(temperatures: Tensor) -> OwnLoss:
    """The mean cross-entropy of a task's logits divided by its one of `[N]` temperatures.

    With the best temperatures it is the least cross-entropy, and its gradient is that of the least: where a minimum
    over a fixed set is attained, its gradient is that of what attains it.
    """

    def loss(output: TaskOutput, labels: Tensor, **_: Tensor) -> Tensor:
        return F.cross_entropy(output.logits / temperatures[output.task_id].to(output.logits), labels)

    return loss
