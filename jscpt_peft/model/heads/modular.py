"""Feature modules and a learned graph from tasks to modules, in the manner of MT-CRL (NeurIPS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..start import Start
from .base import FeatureHead, LossSums, TaskParameters
from .statistics import correlation, of_each_task


class FeatureModules(FeatureHead):
    """x̄ = Σ_k A_ik up_k Z_k with Z_k = down_k x: K modules, which all tasks share, and routing A = sigmoid(B).

    "MT-CRL-style": only the abstract of MT-CRL could be read, so that the penalties are our simplest reading of it.
    The modules begin as K blocks of the features, so that x̄ is proportional to x: training starts from CLIP's own
    predictions. The penalty of task i is the sum of

    * `decorrelation_weight` · Σ_{k<l} ‖corr(Z_k, Z_l)‖²_F over its images in the batch;
    * 1/N of (`sparsity_weight` · ‖A‖₁ - `entropy_weight` · entropy of the modules' usage Σ_i A_ik / Σ_ik A_ik), since
      the graph is that of all tasks;
    * `invariance_weight` · Σ_e ‖∇_{A_i} R_e - mean_e ∇_{A_i} R_e‖² over its environments e, the first and the second
      half of its images in the batch, with mean losses R_e. A task with a single image in the batch has none.

    Correlations and environments are those of a batch: micro-batches and processes average theirs.

    Attributes:
        routing: `[N, K]`, B; zero at the start.
        down, up: `[K, r, D]` and `[K, D, r]` with r = ⌈D/K⌉.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, width, count = start.config, start.sizes.projection, start.config.num_modules
        if config.single_task or count > width:
            raise ValueError(
                f"`num_modules` is {count} and `single_task` {config.single_task}, but intervention='modular' shares "
                f"modules of the {width} features among tasks: give at most {width} modules, and leave `single_task` "
                "out."
            )
        self.own("routing", start.zeros(start.num_tasks, count))
        down = start.zeros(count, -(-width // count), width)
        for module, block in zip(down, torch.arange(width).tensor_split(count), strict=True):
            module[torch.arange(len(block)), block] = 1
        self.share("down", down)
        self.share("up", down.mT.contiguous())
        self.decorrelation, self.invariance = config.decorrelation_weight, config.invariance_weight
        self.sparsity, self.entropy = config.sparsity_weight, config.entropy_weight

    def task_parameters(self) -> TaskParameters:
        """As the base's, but that every task sees the whole graph, `routing` `[N, N, K]`, its own row first."""
        tasks = torch.arange(self.num_tasks, device=self.down.device)
        rows = (tasks[:, None] + tasks) % self.num_tasks
        return {**super().task_parameters(), "routing": self.tensors()["routing"][rows]}

    def graph(self) -> Tensor:
        """A `[N, K]`, how much each task takes from each module, without gradient."""
        return torch.sigmoid(self.tensors()["routing"].detach())

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        return _routed(_modules(x, task_ids, parameters), torch.sigmoid(parameters["routing"]), task_ids, parameters)

    @property
    def has_penalty(self) -> bool:
        return any((self.decorrelation, self.sparsity, self.entropy, self.invariance))

    def penalty(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, loss_sums: LossSums) -> Tensor:
        modules, graph = _modules(x, task_ids, parameters), torch.sigmoid(parameters["routing"])
        total = (self.sparsity * graph.sum((1, 2)) - self.entropy * _usage_entropy(graph)) / self.num_tasks
        if self.decorrelation:
            correlated = of_each_task(_squared_correlations, self.num_tasks, task_ids, modules)
            total = total + self.decorrelation * correlated
        if self.invariance:
            total = total + self.invariance * _variance(modules, graph, task_ids, parameters, loss_sums)
        return total


def _modules(x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
    """Z `[B, K, r]`."""
    x = x.to(torch.promote_types(x.dtype, parameters["down"].dtype))
    return torch.einsum("bkrd,bd->bkr", parameters["down"][task_ids], x)


def _routed(modules: Tensor, graph: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
    """x̄ `[B, D]` of modules `[B, K, r]` under A `[N, N, K]`, each task's own row first."""
    taken = graph[task_ids, 0].unsqueeze(-1) * modules
    return torch.einsum("bkdr,bkr->bd", parameters["up"][task_ids], taken)


def _squared_correlations(modules: Tensor) -> Tensor:
    """Σ_{k<l} ‖corr(Z_k, Z_l)‖²_F of modules `[b, K, r]`."""
    count, size = modules.shape[1:]
    blocks = correlation(modules.flatten(1), modules.flatten(1)).view(count, size, count, size)
    return blocks.square().sum((1, 3)).triu(1).sum()


def _usage_entropy(graph: Tensor) -> Tensor:
    """`[N]`: the entropy of the modules' usage, from the graph `[N, N, K]` as each task sees it."""
    usage = graph.sum(1) / graph.sum((1, 2))[:, None]
    return -(usage * usage.clamp(min=torch.finfo(usage.dtype).tiny).log()).sum(-1)


def _variance(
    modules: Tensor, graph: Tensor, task_ids: Tensor, parameters: TaskParameters, loss_sums: LossSums
) -> Tensor:
    """`[N]`: Σ_e ‖∇_{A_i} R_e - mean_e ∇_{A_i} R_e‖² of each task over the two halves of its images."""
    same = task_ids[:, None] == task_ids
    in_first = 2 * (same.tril().sum(1) - 1) < same.sum(1) - 1  # place among the task's images, from 0
    gradients = []
    for half in (in_first, ~in_first):
        rows = half.nonzero()[:, 0]
        sums, counts = loss_sums(_routed(modules[rows], graph, task_ids[rows], parameters), rows)
        risks = sums / counts.clamp(min=1)
        gradients.append(torch.autograd.grad(risks.sum(), graph, create_graph=True)[0][:, 0])
    gradients = torch.stack(gradients)
    spread = (gradients - gradients.mean(0)).square().sum((0, 2))
    return spread.masked_fill(torch.bincount(task_ids, minlength=len(spread)) < 2, 0)
