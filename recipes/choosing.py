"""`--method auto`: settings by what docs/choosing.md tells of the measurements, each with its reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jscpt_peft.data import TaskSet

# Eqs. 4-6 with an Ω that moves in a short run, by a D_dev loss that confidence cannot lower: as measured.
SCHEDULER = {"weigh_own_steps": True, "neumann_terms": 0, "lower_steps": "auto", "scheduler_learning_rate": "auto"}
SCHEDULER |= {"dev_batch_size": 32, "dev_loss": "calibrated"}


def choose(task_set: TaskSet) -> tuple[dict[str, Any], list[str]]:
    """Arguments of recipes/train.py for a task set, and why they are these."""
    tasks = list(task_set)
    images, classes = sum(len(task.train) for task in tasks), sum(len(task.class_names) for task in tasks)
    used = Counter(name for task in tasks for name in task.class_names)
    common = sum(count for count in used.values() if count > 1) / classes
    settings = {"method": "jscpt", "num_shared_tokens": 0, "num_task_tokens": 0}
    settings |= {"optim": "adamw_torch", "learning_rate": 0.003}  # as measured
    reasons = [
        f"{len(tasks)} tasks, {classes} classes of which {common:.0%} are in several tasks, "
        f"{images / classes:.0f} training images of each.",
        "no prompt tokens: residuals on the class features need fewer and cheaper steps (measured on a small CLIP).",
    ]
    if common == 0:
        settings["class_residual"] = "task"
        reasons.append("a residual of each task's own, and no weights: no two tasks have a class in common to share.")
    else:
        settings |= {"class_residual": "both", "task_prior": 10.0, **SCHEDULER}
        reasons += [
            "a shared residual, and one of each task held near zero: tasks help one another by their classes.",
            "the paper's scheduler with a calibrated D_dev loss: it gained where tasks had wrong labels or few "
            "images, and cost nothing beyond noise in runs of 200 steps where they were equal.",
        ]
    return settings, reasons
