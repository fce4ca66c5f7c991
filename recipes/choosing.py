"""`--method auto`: settings by what docs/choosing.md tells of the measurements, each with its reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jscpt_peft.data import TaskSet

# Eqs. 4-6 with an Ω that moves in a short run, by a D_dev loss that confidence cannot lower: as measured.
SCHEDULER = {"weigh_own_steps": True, "neumann_terms": 0, "lower_steps": "auto", "scheduler_learning_rate": "auto"}
SCHEDULER |= {"dev_batch_size": 32, "dev_loss": "calibrated"}
UNCERTAINTY = {"weigh_own_steps": True, "weighting": "uw", "weighting_learning_rate": 0.1}
UNEQUAL = 4  # times as many images of each class as another task: between the two amounts that were measured


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
        return settings, reasons
    settings |= {"class_residual": "both", "task_prior": 10.0}
    reasons.append("a shared residual, and one of each task held near zero: tasks help one another by their classes.")
    per_class = [len(task.train) / len(task.class_names) for task in tasks]
    if max(per_class) > UNEQUAL * min(per_class):
        settings |= SCHEDULER
        reasons.append(
            f"the paper's scheduler, calibrated: {min(per_class):.0f} to {max(per_class):.0f} training images of each "
            "class; it gained with few images on shapes, where uncertainty weighting took few images for wrong labels."
        )
    else:
        settings |= UNCERTAINTY
        reasons.append(
            "uncertainty weighting: it finds tasks with wrong labels, and costs nothing among tasks of equal size."
        )
    return settings, reasons
