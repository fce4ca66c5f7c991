"""What gives every task its prompts: the joint between a method and the towers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..start import Start
from ..task_module import TaskModule


class PromptSource(TaskModule):
    """Prompts of all tasks for both towers; the base of all prompt methods.

    A source makes its parameters in `__init__` (`share` for what all tasks share, `own` for a slice per task) and
    computes the prompts from `tensors()` in `forward`. Growing by a task, training one task alone, saving, loading and
    exporting follow from that. Name it in `PROMPT_SOURCES`, and choose it by `JSCPTConfig(prompts=...)`.

    Attributes:
        grouping: what `JSCPTConfig.groups` gives this source: per task the name of its `"group"` or its path in a
            `"tree"`; `None`: nothing.

    Example:
        >>> class TaskPrompts(PromptSource):
        ...     def __init__(self, start):
        ...         super().__init__(start)
        ...         shape = start.num_tasks, start.depth("text"), 4, start.sizes.widths["text"]
        ...         self.own("prompts", start.normal(start.generator("text"), *shape, std=0.02))
        ...
        ...     def forward(self):
        ...         return {"text": self.tensors()["prompts"]}
    """

    grouping: ClassVar[str | None] = None

    def forward(self) -> dict[str, Tensor]:
        """Prompts as each task sees them: tower -> `[N, depth, n, d]`; a tower without prompts is left out.

        No output may be an ancestor of another one in the graph, else its gradient counts twice.
        """
        raise NotImplementedError

    def shared_gradients(self, prompts: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
        """Each task's gradient with respect to the shared parameters, `[N, P]` (Eq. 5).

        Args:
            prompts: what `forward` returned, with its graph.
            gradients: each task's gradient with respect to its slice of the prompts, of the same shapes.
        """
        shared = [parameter for parameter in self.shared() if parameter.requires_grad]
        first = next(iter(gradients.values()))
        rows = []
        for task in range(self.num_tasks if shared else 0):
            alone = [torch.zeros_like(each).index_copy_(0, each.new_tensor([task], dtype=torch.long), each[task, None])
                     for each in gradients.values()]  # fmt: skip
            pulled = torch.autograd.grad(
                [prompts[tower] for tower in gradients],
                shared,
                alone,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            rows.append(torch.cat([each.reshape(-1) for each in pulled]))
        return torch.stack(rows) if rows else first.new_zeros(self.num_tasks, 0)


def shared_tokens(start: Start) -> int:
    """The number of tokens of a source that has prompts of all tasks alone, in both towers.

    Raises:
        ValueError: the configuration asks for tokens of the tasks' own, or for one tower.
    """
    config = start.config
    for name, needed in {"num_task_tokens": 0, "towers": "both"}.items():
        if getattr(config, name) != needed:
            raise ValueError(
                f"`{name}` is {getattr(config, name)!r}, but prompts={config.prompts!r} takes {needed!r} alone: "
                "set it, or choose prompts='concatenated', which knows others."
            )
    return config.num_shared_tokens
