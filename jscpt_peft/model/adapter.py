"""`TaskAdapter`: the one owner of an adapter's parameters."""

from __future__ import annotations

from torch import nn

from .class_residual import ClassResidual
from .heads import FEATURE_HEADS, TaskParameters
from .prompts import PROMPT_SOURCES
from .start import Start
from .task_module import TaskModule


class TaskAdapter(nn.Module):
    """A prompt source and, where they are asked for, a feature head and class residuals: all that an adapter learns.

    Attributes:
        prompts: `PromptSource`.
        head: `FeatureHead` or `None`.
        class_residual: `ClassResidual` or `None`.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.prompts = PROMPT_SOURCES[start.config.prompts](start)
        head = FEATURE_HEADS[start.config.intervention]
        self.head = None if head is None else head(start)
        self.class_residual = None if start.config.class_residual == "none" else ClassResidual(start)

    def task_parameters(self) -> TaskParameters:
        """Prompts (`vision`, `text`), the head's parameters and `class_residual` as each task sees them.

        Losses are functions of these, and task i's loss of their slices i alone. The gradient of the *sum* of the task
        losses with respect to them therefore holds every task's own gradient: one backward serves Eqs. 5 and 9.
        """
        residual = {} if self.class_residual is None else {"class_residual": self.class_residual()}
        return {**self.prompts(), **({} if self.head is None else self.head.task_parameters()), **residual}

    def parts(self) -> list[TaskModule]:
        """The modules that hold parameters."""
        return [part for part in (self.prompts, self.head, self.class_residual) if part is not None]

    def shared_prompts(self) -> list[nn.Parameter]:
        """The parameters of prompts and class residuals that several tasks share: those of Eq. 5."""
        return self.prompts.shared() + ([] if self.class_residual is None else self.class_residual.shared())

    # ---- growing by a task, and training one alone ------------------------------------------------------------------

    def append(self, added: TaskAdapter, prompts_from: int | None = None) -> None:
        """Appends the tasks of an adapter made like this one; they may take the prompts of the task `prompts_from`."""
        self.prompts.append(added.prompts, prompts_from)
        for mine, others in zip(self.parts()[1:], added.parts()[1:], strict=True):
            mine.append(others)

    @property
    def has_own_parameters(self) -> bool:
        """Whether a task has parameters that no other task has."""
        return any(part.has_own_parameters for part in self.parts())

    def train_only(self, task: int | None) -> None:
        """Gradients go to one task's own parameters alone, at this position; `None`: to all."""
        for part in self.parts():
            part.train_only(task)

    @property
    def trained(self) -> int | None:
        """Position of the task that is trained alone."""
        return self.prompts.trained

    def freeze_others(self) -> None:
        """No gradients for what is not to be trained, after something has let them into everything."""
        for part in self.parts():
            part.freeze_others()
