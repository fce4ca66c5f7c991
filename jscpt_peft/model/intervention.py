"""Prompt feature selection by causal intervention (Eq. 2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .config import JSCPTConfig
from .layer import JSCPTLayer
from .routing import TaskRouter
from .task_stack import TaskStack

Views = dict[str, torch.Tensor]


class Intervention(TaskStack):
    """x̄ = MLP₂(M∘x + MLP₁(M∘x)), M = sigmoid(mask) (Eq. 2), with residual bottleneck MLPs.

    MLP_k(u) = u + up_k(gelu(down_k(u))), and `up` starts at zero: with the masks at 0.5, x̄ = x. Training therefore
    starts from CLIP's own predictions.

    Args:
        num_tasks: N.
        width: D, the size of the features.
        hidden: width of the MLPs' hidden layer.
        shared: one pair of MLPs for all tasks instead of a pair a task; masks are always a task's own.
        learn_mask: `False` fixes the masks at 0.5.
        generator: source of the random start.
        like: tensor whose device and dtype the parameters take.

    Attributes:
        mask: `[N, D]` logits of the masks.
        inner_*, outer_*: weights of MLP₁ and MLP₂, `down [N or 1, D, h]`, `up [N or 1, h, D]` and their biases.
    """

    def __init__(
        self,
        num_tasks: int,
        width: int,
        hidden: int,
        shared: bool,
        learn_mask: bool,
        generator: torch.Generator,
        like: torch.Tensor,
    ) -> None:
        names = [f"{mlp}_{part}" for mlp in ("inner", "outer") for part in ("down", "down_bias", "up", "up_bias")]
        super().__init__(num_tasks, stacked=["mask"] if shared else ["mask", *names])
        mask = like.new_zeros(num_tasks, width)
        if learn_mask:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer("mask", mask)
        copies = 1 if shared else num_tasks
        for mlp in ("inner", "outer"):
            down = torch.randn(copies, width, hidden, generator=generator) / width**0.5
            self.register_parameter(f"{mlp}_down", nn.Parameter(down.to(like)))
            self.register_parameter(f"{mlp}_down_bias", nn.Parameter(like.new_zeros(copies, hidden)))
            self.register_parameter(f"{mlp}_up", nn.Parameter(like.new_zeros(copies, hidden, width)))
            self.register_parameter(f"{mlp}_up_bias", nn.Parameter(like.new_zeros(copies, width)))

    def views(self) -> Views:
        """Every parameter as each task sees it: name -> `[N, ...]`."""
        return {name: tensor.expand(self.num_tasks, *tensor.shape[1:]) for name, tensor in self.tensors().items()}


def select_features(x: torch.Tensor, task_ids: torch.Tensor, views: Views) -> torch.Tensor:
    """Selected features x̄ of Eq. 2.

    Args:
        x: `[B, D]` image features.
        task_ids: `[B]`.
        views: the parameters of an `Intervention` as each task sees them, `[N, ...]`.
    """
    masked = torch.sigmoid(views["mask"][task_ids]) * x
    return _mlp(masked + _mlp(masked, task_ids, views, "inner"), task_ids, views, "outer")


def complement_features(x: torch.Tensor, task_ids: torch.Tensor, views: Views) -> torch.Tensor:
    """(1 - M)∘x `[B, D]`: the features that the mask turns away, the reference of a true ablation."""
    return (1 - torch.sigmoid(views["mask"][task_ids])) * x


def _mlp(u: torch.Tensor, task_ids: torch.Tensor, views: Views, name: str) -> torch.Tensor:
    down, up = views[f"{name}_down"][task_ids], views[f"{name}_up"][task_ids]
    hidden = torch.bmm(u.unsqueeze(1), down).squeeze(1) + views[f"{name}_down_bias"][task_ids]
    return u + torch.bmm(F.gelu(hidden).unsqueeze(1), up).squeeze(1) + views[f"{name}_up_bias"][task_ids]


class FeatureSelection(JSCPTLayer):
    """`CLIPModel.visual_projection` followed by Eq. 2, so that `get_image_features` gives x̄."""

    adapter_layer_names = ("jscpt_intervention",)

    def __init__(self, base_layer: nn.Linear, router: TaskRouter) -> None:
        super().__init__(base_layer, router)
        self.jscpt_intervention = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: JSCPTConfig) -> None:
        super().update_layer(adapter_name, config)
        if config.intervention != "none":
            self.jscpt_intervention[adapter_name] = self._start(config, len(config.tasks), "selection")

    def add_task(self, adapter_name: str, config: JSCPTConfig, init_from: int | None) -> None:
        super().add_task(adapter_name, config, init_from)
        if adapter_name in self.jscpt_intervention:
            added = self._start(config, 1, f"selection/{config.task_order[-1]}")
            self.jscpt_intervention[adapter_name].append(added)

    def _start(self, config: JSCPTConfig, num_tasks: int, salt: str) -> Intervention:
        return Intervention(
            num_tasks=num_tasks,
            width=self.base_layer.out_features,
            hidden=config.intervention_hidden,
            shared=config.intervention_shared,
            learn_mask=config.learn_masks,
            generator=self.generator(config, salt),
            like=self.base_layer.weight,
        )

    def views(self) -> Views:
        """The active intervention's parameters as each task sees them; empty where there is none."""
        if not self.enabled or self.active_name not in self.jscpt_intervention:
            return {}
        return self.jscpt_intervention[self.active_name].views()

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """x `[B, D]`: the features before selection."""
        return self.base_layer(pooled)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        x = self.project(pooled)
        task_ids, self.router.image_task_ids = self.router.image_task_ids, None
        views = self.views()
        if not views:
            return x
        if task_ids is None:
            task_ids = self.router.resolve(None, len(x), list(self.active_config.tasks), x.device)
        return select_features(x, task_ids, views).to(x.dtype)  # `CLIPModel` multiplies it with its text features
