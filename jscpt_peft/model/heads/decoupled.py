"""Causal and spurious features apart, and backdoor adjustment over confounders of training images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..start import Start
from .base import FeatureHead, LossSums, TaskParameters
from .statistics import correlation, of_each_task


class DecoupledFeatures(FeatureHead):
    """P(Y | do(Z_c)) = Σ_c P(Y | Z_c, c) P(c): the image's causal features with the spurious ones of other images.

    A small network, which all tasks share, splits x: with h = gelu(down x), the causal part is Z_c = x + causal_up h,
    the spurious part Z_s = spurious_up h of few dimensions, and Z_c + back Z_s is to rebuild x. Each confounder c of
    the bank, a Z_s of a training image, makes one view Z_c + back c; P(c) = 1/K. `causal_up` and `back` start at zero,
    so that training begins with CLIP's own predictions; so does the bank, which forgets the oldest first.

    The penalty of task i is `reconstruction_weight` · mean of ‖Z_c + back Z_s - x‖² / ‖x‖² + `decorrelation_weight` ·
    ‖corr(Z_c, Z_s)‖²_F, over its images in the batch. A correlation is one of a batch: micro-batches and processes
    average theirs, which is not the correlation of their union.

    Attributes:
        down, down_bias, causal_up, spurious_up, back: the network, `[h, D]`, `[h]`, `[D, h]`, `[s, h]` and `[D, s]`
            with s = h.
        bank: `[K, s]` buffer of confounders, the latest last.
    """

    observes = True

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, width, generator = start.config, start.sizes.projection, start.generator("decoupled")
        if config.single_task:
            raise ValueError(
                "`single_task` is True, but intervention='decoupled' has one bank of confounders for all tasks: leave "
                "`single_task` out, or choose another `intervention`."
            )
        hidden = config.intervention_hidden
        self.share("down", start.uniform(generator, hidden, width, bound=width**-0.5))
        self.share("down_bias", start.zeros(hidden))
        self.share("causal_up", start.zeros(width, hidden))
        self.share("spurious_up", start.uniform(generator, hidden, hidden, bound=hidden**-0.5))
        self.share("back", start.zeros(width, hidden))
        bank = start.zeros(config.num_confounders, hidden)
        self.share("bank", bank.to(torch.promote_types(bank.dtype, torch.float32)), learned=False)
        self.reconstruction, self.decorrelation = config.reconstruction_weight, config.decorrelation_weight

    def split(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> tuple[Tensor, Tensor]:
        """Z_c `[B, D]` and Z_s `[B, s]`; arguments as for `select`."""
        x = x.to(torch.promote_types(x.dtype, parameters["down"].dtype))
        hidden = F.gelu(_mapped(x, task_ids, parameters, "down") + parameters["down_bias"][task_ids])
        causal = x + _mapped(hidden, task_ids, parameters, "causal_up")
        return causal, _mapped(hidden, task_ids, parameters, "spurious_up")

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        """Z_c + back c `[B, K, D]`, a view per confounder."""
        causal, _ = self.split(x, task_ids, parameters)
        back = parameters["back"]
        confounders = parameters["bank"].to(back.dtype) @ back.mT  # [N, K, D]
        return causal[:, None] + confounders[task_ids]

    @property
    def has_penalty(self) -> bool:
        return bool(self.reconstruction or self.decorrelation)

    # FeatureHead's form: not every argument is used here.
    def penalty(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, loss_sums: LossSums) -> Tensor:  # noqa: ARG002
        causal, spurious = self.split(x, task_ids, parameters)
        x = x.to(causal.dtype)
        error = causal + _mapped(spurious, task_ids, parameters, "back") - x
        errors = error.square().sum(-1) / x.square().sum(-1)
        rebuilt = of_each_task(Tensor.mean, self.num_tasks, task_ids, errors)
        correlated = of_each_task(_squared_correlation, self.num_tasks, task_ids, causal, spurious)
        return self.reconstruction * rebuilt + self.decorrelation * correlated

    @torch.no_grad()
    def observe(self, x: Tensor, task_ids: Tensor) -> None:
        """Puts Z_s of these images into the bank; not while one task is trained alone, for it is the others' too."""
        if self.trained is None:
            _, spurious = self.split(x, task_ids, self.task_parameters())
            # Another tensor: a graph may hold the one that is there.
            self.bank = torch.cat([self.bank, spurious.to(self.bank)])[-len(self.bank) :]


def _mapped(rows: Tensor, task_ids: Tensor, parameters: TaskParameters, name: str) -> Tensor:
    """The linear map `parameters[name]` `[N, p, q]` of rows `[B, q]`, to `[B, p]`."""
    return torch.bmm(parameters[name][task_ids], rows.unsqueeze(-1)).squeeze(-1)


def _squared_correlation(causal: Tensor, spurious: Tensor) -> Tensor:
    return correlation(causal, spurious).square().sum()
