"""The hypergradient of the real model: against a closed form, and against the bi-level problem itself."""

from __future__ import annotations

import gc

import oracles
import prompted
import pytest
import torch
from peft import get_peft_model
from small_run import trainable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from jscpt_peft import JSCPTConfig
from jscpt_peft.scheduling import TaskPromptScheduler
from jscpt_peft.training import implicit_gradient as implicit_gradient_module
from jscpt_peft.training.hessian import HessianProduct, hessian_chunks, kept_graph
from jscpt_peft.training.implicit_gradient import dev_gradient, implicit_gradient
from jscpt_peft.training.task_gradients import Batch, task_gradients
from jscpt_peft.training.task_sums import TaskSums

TASKS = {"art": ["cat", "dog", "fox"], "sketch": ["cat", "dog"]}
IDS = {
    "art": [[97, 4, 98], [97, 5, 6, 98], [97, 7, 98]],
    "sketch": [[97, 8, 98], [97, 9, 98]],
}
# The scheduled loss plus this times half the squared distance from the start is strongly convex around its optimum.
DAMPING = 24.0
EFFECT = torch.tensor([0.9, 0.4], dtype=torch.float64)
AFFINITY = torch.tensor([[0.0, 0.6], [-0.3, 0.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    return BiLevelProblem()


class BiLevelProblem:
    """Both levels on a tiny CLIP with about 150 parameters, small enough for a dense Hessian."""

    def __init__(self) -> None:
        clip = oracles.tiny_clip(layers=2, vision_width=8, vision_heads=2, text_width=6, projection=6, image_size=16)
        with torch.no_grad():
            clip.logit_scale.fill_(0.5)
        config = JSCPTConfig(
            tasks=TASKS,
            class_token_ids=IDS,
            num_shared_tokens=2,
            num_task_tokens=1,
            intervention_hidden=1,
            prompt_depth=1,
            prompt_init_std=0.3,
        )
        self.model = get_peft_model(clip, config)
        self.parameters = trainable(self.model)
        self.names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            # Text prompts first: a start at which the Hessian is positive definite.
            for parameter in [*self.parameters[2:4], *self.parameters[:2], *self.parameters[4:]]:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).double())
        self.lower_batch, self.dev_batch = (self.batch(seed) for seed in (4, 5))
        self.scheduler = TaskPromptScheduler(2).double()
        self.start = self.theta()

    def batch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        task_ids = torch.tensor([0, 0, 0, 1, 1])
        pixels = torch.randn(5, 3, 16, 16, generator=generator).double()
        return Batch(pixels, task_ids, torch.tensor([0, 1, 2, 0, 1]))

    @property
    def size(self):
        return sum(parameter.numel() for parameter in self.parameters)

    def theta(self):
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def set_theta(self, theta):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(theta, self.parameters)

    def losses(self, theta, batch):
        """Task losses `[N]` as a function of the flat parameters."""
        shapes = [parameter.shape for parameter in self.parameters]
        parts = theta.split([shape.numel() for shape in shapes])
        values = {n: part.view(shape) for n, part, shape in zip(self.names, parts, shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(
                prompted.TaskLosses(self.model), {f"model.{n}": v for n, v in values.items()}, batch
            )

    def scheduled_loss(self, theta, weights):
        return (weights * self.losses(theta, self.lower_batch)).sum() + DAMPING / 2 * (
            theta - self.start
        ).square().sum()

    def hessian(self, theta, weights):
        return oracles.dense_hessian(lambda point: self.scheduled_loss(point, weights), theta)

    def solve(self, weights, theta, hessian):
        """θ*(Ω) from a point and the Hessian near it: Newton steps with it until the gradient vanishes."""
        for _ in range(200):
            at = theta.clone().requires_grad_(True)
            gradient = torch.autograd.grad(self.scheduled_loss(at, weights), at)[0]
            if gradient.norm() < 1e-13:
                return theta
            theta = theta - torch.linalg.solve(hessian, gradient)
        raise AssertionError(f"the lower level is not solved: gradient norm {gradient.norm():.1e}")

    def implicit_gradient(self, terms, step_size):
        """∇_Ω L_dev as the trainer computes it, at the current θ."""
        kept = kept_graph(self.model, self.lower_batch)
        weights = self.scheduler(EFFECT, AFFINITY)
        _, dev = dev_gradient(self.model, self.parameters, [self.dev_batch])
        gradients, inverse = implicit_gradient(
            kept.task_parameters,
            self.parameters,
            kept.sums.detach().means().gradients,
            weights,
            list(self.scheduler.parameters()),
            dev,
            HessianProduct(self.model, self.parameters, [self.lower_batch], weights, kept=kept),
            terms=terms,
            step_size=step_size,
            damping=DAMPING,
            power_iterations=0,
        )
        return torch.cat(gradients), inverse


def test_series_tends_to_the_closed_form(problem):
    theta, weights = problem.theta(), problem.scheduler(EFFECT, AFFINITY)
    hessian = problem.hessian(theta, weights.detach())
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues.min() > 0
    at = theta.clone().requires_grad_(True)
    dev = torch.autograd.grad(problem.losses(at, problem.dev_batch).sum(), at)[0]
    per_task = torch.stack(
        [torch.autograd.grad(problem.losses(at, problem.lower_batch)[task], at)[0] for task in range(2)]
    )
    products = per_task @ torch.linalg.solve(hessian, dev)
    closed_form = -torch.cat(torch.autograd.grad(weights, list(problem.scheduler.parameters()), products))

    step_size = float(2 / (eigenvalues.min() + eigenvalues.max()))  # the best of all fixed ones
    errors = []
    for terms in (1, 3, 9, 40):
        series, _ = problem.implicit_gradient(terms, step_size)
        errors.append(float((series - closed_form).norm() / closed_form.norm()))
    print("relative errors with 1, 3, 9, 40 terms:", *(f"{error:.1e}" for error in errors))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8, f"relative errors {errors}"


@pytest.mark.slow
def test_implicit_gradient_is_the_slope_of_the_whole_bilevel_loss():
    """Ω is moved, the lower level solved anew, and the dev loss compared: no formula of the paper is used."""
    problem = BiLevelProblem()
    omega = list(problem.scheduler.parameters())

    def weights():
        return problem.scheduler(EFFECT, AFFINITY).detach()

    hessian = problem.hessian(problem.start, weights())
    optimum = problem.solve(weights(), problem.start, hessian)
    hessian = problem.hessian(optimum, weights())

    def dev_loss():
        theta = problem.solve(weights(), optimum, hessian)
        return problem.losses(theta, problem.dev_batch).sum()

    value = dev_loss()
    problem.set_theta(optimum)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    implicit, inverse = problem.implicit_gradient(40, float(2 / (eigenvalues.min() + eigenvalues.max())))
    assert inverse.terms == 40

    slopes, shift = [], 1e-4
    for parameter in omega:
        for index in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * shift
                ends.append(dev_loss())
                with torch.no_grad():
                    parameter[index] -= sign * shift
            slopes.append((ends[0] - ends[1]) / (2 * shift))
    slopes = torch.stack(slopes)
    assert slopes.norm() > 1e-5
    torch.testing.assert_close(implicit, slopes, rtol=1e-6, atol=1e-6 * float(slopes.norm()))

    # A step of Ω against it lowers the dev loss of the newly solved lower level.
    with torch.no_grad():
        for parameter, gradient in zip(omega, implicit.split([2, 2]), strict=True):
            parameter -= 0.1 * gradient / implicit.norm()
    assert dev_loss() < value


def test_the_gradients_of_chunks_are_not_all_held(monkeypatch):
    """Of as many chunks as there are images, no more than the sum and one chunk's gradients are there at a time."""
    model = prompted.prompted_clip(torch.float64)
    parameters = trainable(model)
    chunks = hessian_chunks([Batch(*prompted.batch(model, per_task=2))], None, 1)
    assert len(chunks) == 6
    held = []

    def counted(*args, **kwargs):
        gc.collect()
        sums = [each for each in gc.get_objects() if type(each) is TaskSums]
        held.append(len({gradient.data_ptr() for each in sums for gradient in each.gradients.values()}))
        return task_gradients(*args, **kwargs)

    monkeypatch.setattr(implicit_gradient_module, "task_gradients", counted)
    dev_gradient(model, parameters, chunks)
    assert held[0] == 0 < held[1]
    assert held[-1] <= 2 * held[1]
