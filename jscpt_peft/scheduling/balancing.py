"""Weights of the tasks from their losses or gradients' norms over time: UW, GradNorm, DWA and FAMO."""

from __future__ import annotations

import torch
from torch import Tensor

from .scheduler import normalized
from .signals import StepSignals, Weighting

ADAM_DECAYS, ADAM_EPSILON = (0.9, 0.999), 1e-8
SMALLEST_LOSS = 1e-8


class Balancing(Weighting):
    """A weighting by a rule of its own, without Ω; what it remembers is part of the checkpoint.

    Args:
        num_tasks: N.
        weight_normalization: as for `TaskPromptScheduler`; "none" leaves the weights as they are published.
    """

    def __init__(self, num_tasks: int, weight_normalization: str = "none") -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.weight_normalization = weight_normalization

    def forward(self, signals: StepSignals) -> Tensor:
        return normalized(self.weights(signals), signals.usable, self.weight_normalization)

    def weights(self, signals: StepSignals) -> Tensor:
        """The published weights `[N]`; what they hold for tasks that are not usable does not matter."""
        raise NotImplementedError


class Descending(Balancing):
    """A balancing whose numbers ξ, one per task and 0 at first, Adam moves by a gradient that the rule gives.

    Args:
        num_tasks, weight_normalization: as for `Balancing`.
        learning_rate: of ξ.

    Attributes:
        xi, momentum, squares, updates: `[N]` ξ and Adam's state; a task that is not usable keeps its own.
    """

    def __init__(self, num_tasks: int, weight_normalization: str = "none", learning_rate: float = 0.025) -> None:
        super().__init__(num_tasks, weight_normalization)
        self.learning_rate = learning_rate
        for name in ("xi", "momentum", "squares", "updates"):
            self.register_buffer(name, torch.zeros(num_tasks))

    def descend(self, gradient: Tensor, usable: Tensor) -> None:
        """One step of Adam on ξ of the usable tasks."""
        first, second = ADAM_DECAYS
        momentum = first * self.momentum + (1 - first) * gradient
        squares = second * self.squares + (1 - second) * gradient.square()
        updates = self.updates + 1
        scale = (squares / (1 - second**updates)).sqrt() + ADAM_EPSILON
        xi = self.xi - self.learning_rate * momentum / (1 - first**updates) / scale
        for name, new in {"xi": xi, "momentum": momentum, "squares": squares, "updates": updates}.items():
            getattr(self, name).copy_(torch.where(usable, new, getattr(self, name)))


class UncertaintyWeighting(Descending):
    """Homoscedastic uncertainty of classification (Kendall et al., CVPR 2018): `Σ_i exp(-ξ_i) L_i + ξ_i / 2`.

    ξ_i = log σ_i² is learned with the network; weights are `exp(-ξ_i)`.
    """

    def weights(self, signals: StepSignals) -> Tensor:
        weights = torch.exp(-self.xi)
        self.descend(0.5 - weights * signals.losses, signals.usable)
        return weights


class GradNorm(Descending):
    """Weighted gradients of like norms, larger for tasks that lag behind (Chen et al., ICML 2018).

    With G_i = w_i‖g_i‖, their mean Ḡ, and r_i the ratio L_i / L_i(first step) divided by its mean, the weights descend
    on `Σ_i |G_i - Ḡ r_i^α|`, whose second term is a constant. They are `w = N softmax(ξ)`, as in LibMTL, and so stay
    positive and sum to N; the publication moves w itself and rescales it.

    Args:
        num_tasks, weight_normalization, learning_rate: as for `Descending`.
        alpha: α, how strongly tasks that lag behind are pulled.
    """

    needs_gramian = True

    def __init__(
        self, num_tasks: int, weight_normalization: str = "none", learning_rate: float = 0.025, alpha: float = 1.5
    ) -> None:
        super().__init__(num_tasks, weight_normalization, learning_rate)
        self.alpha = alpha
        self.register_buffer("first_losses", torch.full((num_tasks,), torch.nan))

    def weights(self, signals: StepSignals) -> Tensor:
        usable, losses = signals.usable, signals.losses.to(self.xi)
        first = torch.where(self.first_losses.isnan() & usable, losses, self.first_losses)
        self.first_losses.copy_(first)
        shares, count = _shares(self.xi, usable), usable.sum()
        weights, norms = count * shares, signals.gramian.diagonal().clamp(min=0).sqrt().to(self.xi)
        ratios, weighted = losses / first.clamp(min=SMALLEST_LOSS), weights * norms
        target = _mean(weighted, usable) * (ratios / _mean(ratios, usable)) ** self.alpha
        by_weight = ((weighted - target).sign() * norms).masked_fill(~usable, 0)
        self.descend(count * _through_softmax(by_weight, shares), usable)
        return weights


class FAMO(Descending):
    """All losses fall at a like rate (Liu et al., NeurIPS 2023): `w_i = c z_i / L_i`, `z = softmax(ξ)`, `Σ_i w_i = 1`.

    ξ descends along `J(z)ᵀ [log L(t) - log L(t+1)] + γ ξ`. As L(t+1) counts the loss of the next step's batch, so that
    nothing more is computed; the publication reads the same batch again.

    Args:
        num_tasks, weight_normalization, learning_rate: as for `Descending`.
        decay: γ.
    """

    def __init__(
        self, num_tasks: int, weight_normalization: str = "none", learning_rate: float = 0.025, decay: float = 0.01
    ) -> None:
        super().__init__(num_tasks, weight_normalization, learning_rate)
        self.decay = decay
        self.register_buffer("last_losses", torch.full((num_tasks,), torch.nan))

    def weights(self, signals: StepSignals) -> Tensor:
        usable, losses = signals.usable, signals.losses.to(self.xi).clamp(min=SMALLEST_LOSS)
        known = usable & ~self.last_losses.isnan()
        progress = (self.last_losses.log() - losses.log()).masked_fill(~known, 0)
        self.descend(_through_softmax(progress, _shares(self.xi, known)) + self.decay * self.xi, known)
        self.last_losses.copy_(losses.masked_fill(~usable, torch.nan))
        weights = _shares(self.xi, usable) / losses.masked_fill(~usable, 1)
        return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


class DynamicWeightAverage(Balancing):
    """More weight to losses that fell less in the last epoch (Liu et al., CVPR 2019): `w = N softmax(r / T)`.

    r_i is the ratio of task i's mean losses in the last epoch and in the one before; all weights are 1 in the first
    two epochs.

    Args:
        num_tasks, weight_normalization: as for `Balancing`.
        temperature: T.
    """

    def __init__(self, num_tasks: int, weight_normalization: str = "none", temperature: float = 2.0) -> None:
        super().__init__(num_tasks, weight_normalization)
        self.temperature = temperature
        self.register_buffer("epoch", torch.tensor(-1))
        self.register_buffer("sums", torch.zeros(num_tasks))
        self.register_buffer("counts", torch.zeros(num_tasks))
        self.register_buffer("means", torch.full((2, num_tasks), torch.nan))  # of the epoch before the last, the last

    def weights(self, signals: StepSignals) -> Tensor:
        new = self.epoch != signals.epoch  # on the device, which is not waited for
        means = torch.stack([self.means[1], self.sums / self.counts])
        self.means.copy_(torch.where(new & (self.epoch >= 0), means, self.means))
        self.epoch.fill_(signals.epoch), self.sums.masked_fill_(new, 0), self.counts.masked_fill_(new, 0)
        usable = signals.usable
        self.sums.add_(signals.losses.to(self.sums).masked_fill(~usable, 0))
        self.counts.add_(usable)
        before, last = self.means
        ratios = (last / before.clamp(min=SMALLEST_LOSS)).nan_to_num(nan=1.0)
        return usable.sum() * _shares(ratios / self.temperature, usable)


def _shares(logits: Tensor, among: Tensor) -> Tensor:
    """Softmax `[N]` among some tasks; 0 elsewhere, also where there are none."""
    return logits.masked_fill(~among, -torch.inf).softmax(0).nan_to_num(nan=0.0)


def _through_softmax(gradient: Tensor, shares: Tensor) -> Tensor:
    """Jᵀ·gradient, J the derivative of the softmax `shares` by its logits."""
    return shares * (gradient - (shares * gradient).sum())


def _mean(values: Tensor, among: Tensor) -> Tensor:
    return values.masked_fill(~among, 0).sum() / among.sum().clamp(min=1)
