"""Prompts that only some of the tasks share: the base of those with groups (MmAP) or a tree of groups (HiPro)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..start import Start
from .base import PromptSource


class GroupedPrompts(PromptSource):
    """Parameters of groups of tasks beside those of each task's own, which `JSCPTConfig.groups` assigns.

    What belongs to groups are stacks `[groups, ...]` that no task owns: `of_groups` reads them as tasks see them. In
    the single-task form there are no groups.

    Attributes:
        paths: `[N, path]`, the numbers of the groups that each task sees; empty in the single-task form.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config = start.config
        for name in ("num_task_tokens",) if self.single_task else ("num_shared_tokens", "num_task_tokens"):
            if getattr(config, name) < 1:
                raise ValueError(f"`{name}` is 0, but prompts={config.prompts!r} has tokens of groups and of tasks.")
        paths = [] if config.groups is None else numbered_paths(config.groups)
        self.num_groups = 1 + max((max(path) for path in paths), default=-1)
        mine = torch.tensor(paths[-start.num_tasks :], dtype=torch.long, device=start.like.device)
        # Not in the file: the configuration tells it.
        self.register_buffer("paths", mine.reshape(start.num_tasks, -1), persistent=False)

    def add_stacks(self, name: str, group: Tensor, task: Tensor) -> None:
        """Adds `group_<name>` and `task_<name>`: stacks with this start.

        Args:
            name: of the parameters.
            group: `[num_groups, ...]`, left out in the single-task form.
            task: `[N, ...]`; in the single-task form all tasks start as the first one, as in N runs.
        """
        if self.single_task:
            self.share(f"task_{name}", task[0])
        else:
            self.share(f"group_{name}", group)
            self.own(f"task_{name}", task)

    def of_groups(self, stack: Tensor) -> Tensor:
        """`[groups, ...]` -> `[N, path, ...]`, as each task sees it."""
        return stack[self.paths]

    def append(self, other: GroupedPrompts, copied_from: int | None = None) -> None:
        super().append(other, copied_from)
        self.paths = torch.cat([self.paths, other.paths.to(self.paths)])

    def shared_gradients(self, prompts: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
        """As the base's, but zero for a group of one task: it shares that with no other (Eq. 5)."""
        rows = super().shared_gradients(prompts, gradients)
        if self.single_task or not rows.numel():
            return rows
        groups = torch.arange(self.num_groups, device=self.paths.device)
        members = (self.paths[:, :, None] == groups).any(1).sum(0)
        of_several = [
            (members > 1).repeat_interleave(parameter.numel() // self.num_groups)
            for parameter in self.shared()
            if parameter.requires_grad
        ]
        return rows * torch.cat(of_several)


def numbered_paths(groups: dict[str, str | list[str]]) -> list[list[int]]:
    """Per task the numbers of the nodes on its path, counted from 0 in the order of their first appearance.

    The paths are equally long: a shorter one repeats its last node.
    """
    paths = [[group] if isinstance(group, str) else group for group in groups.values()]
    length = max(map(len, paths))
    numbers: dict[str, int] = {}
    return [
        [numbers.setdefault(node, len(numbers)) for node in [*path, *path[-1:] * (length - len(path))]]
        for path in paths
    ]
