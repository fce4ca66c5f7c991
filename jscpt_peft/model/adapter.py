"""`TaskAdapter`: the one owner of an adapter's parameters."""

from __future__ import annotations

from torch import nn

from .heads import FEATURE_HEADS, TaskParameters
from .prompts import PROMPT_SOURCES
from .start import Start
from .task_module import TaskModule


class TaskAdapter(nn.Module):
    """A prompt source and, unless the method has none, a feature head: all that an adapter learns.

    Args:
        start: sizes and random numbers that the parameters begin with.

    Attributes:
        prompts: `PromptSource`.
        head: `FeatureHead` or `None`.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.prompts = PROMPT_SOURCES[start.config.prompts](start)
        head = FEATURE_HEADS[start.config.intervention]
        self.head = None if head is None else head(start)

    @property
    def num_tasks(self) -> int:
        """N."""
        return self.prompts.num_tasks

    def task_parameters(self) -> TaskParameters:
        """Prompts (`vision`, `text`) and the head's parameters as each task sees them, differentiable.

        Losses are functions of these, and task i's loss of their slices i alone. The gradient of the *sum* of the task
        losses with respect to them therefore holds every task's own gradient: one backward serves Eqs. 5 and 9.
        """
        return {**self.prompts(), **({} if self.head is None else self.head.task_parameters())}

    def parts(self) -> list[TaskModule]:
        """The modules that hold parameters."""
        return [self.prompts] if self.head is None else [self.prompts, self.head]

    def shared_prompts(self) -> list[nn.Parameter]:
        """The prompt parameters that several tasks share: those of Eq. 5."""
        return self.prompts.shared()

    # ---- growing by a task, and training one alone ------------------------------------------------------------------

    def append(self, added: TaskAdapter, prompts_from: int | None = None) -> None:
        """Appends the tasks of an adapter that was made like this one.

        Args:
            added: the further tasks' adapter.
            prompts_from: the task whose prompts they start from instead.
        """
        self.prompts.append(added.prompts, prompts_from)
        if self.head is not None:
            self.head.append(added.head)

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
