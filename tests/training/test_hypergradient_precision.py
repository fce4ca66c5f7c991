"""What the upper level's precision does to the direction of its gradient, on the small CLIP with real texts."""

from __future__ import annotations

import adapted
import torch
from small_run import trainable
from torch.nn.functional import cosine_similarity

from jscpt_peft.data import image_transform
from jscpt_peft.model.backbones.double_backward import upper_level_precision
from jscpt_peft.scheduling import JointScheduling, TaskPromptScheduler
from jscpt_peft.training.hessian import HessianProduct, kept_graph
from jscpt_peft.training.implicit_gradient import dev_gradient, implicit_gradient
from jscpt_peft.training.task_gradients import Batch, shared_gramian

PER_TASK = 4


def pictures(dtype: torch.dtype, seed: int) -> Batch:
    transform = image_transform(64, (0.5,) * 3, (0.25,) * 3, train=False)
    generator = torch.Generator().manual_seed(seed)
    counts = [len(names) for names in adapted.TASKS.values()]
    images = adapted.pictures(PER_TASK * len(counts), seed)
    pixels = torch.stack([transform(image, None) for image in images]).to(dtype)
    labels = torch.cat([torch.randint(count, (PER_TASK,), generator=generator) for count in counts])
    return Batch(pixels, torch.arange(len(counts)).repeat_interleave(PER_TASK), labels)


def hypergradient(dtype: torch.dtype, precision: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """∇_Ω L_dev, p ≈ H⁻¹∇_θ L_dev, and the bytes of the graph."""
    model = adapted.adapted_clip(dtype)
    weighting = JointScheduling(TaskPromptScheduler(len(adapted.TASKS))).to(dtype)
    parameters = trainable(model)
    with upper_level_precision(precision):
        kept = kept_graph(model, pictures(dtype, 0), "original")
        step = kept.sums.detach().means()
        weights = weighting(step.signals(1, 0, shared_gramian(model, step.gradients)))
        _, dev = dev_gradient(model, parameters, [pictures(dtype, 1)])
        product = HessianProduct(model, parameters, [pictures(dtype, 0)], weights, kept=kept)
        gradients, inverse = implicit_gradient(
            model.task_parameters(),
            parameters,
            step.gradients,
            weights,
            list(weighting.parameters()),
            dev,
            product,
            3,
            1.0,
        )
    return torch.cat(gradients).double(), inverse.vector.double(), product.graph_bytes


def test_bfloat16_keeps_the_direction_and_takes_less_memory():
    exact, exact_p, _ = hypergradient(torch.float64, "float32")
    single, _, whole = hypergradient(torch.float32, "float32")
    rounded, rounded_p, less = hypergradient(torch.float32, "bfloat16")
    cosines = [float(cosine_similarity(*pair, dim=0)) for pair in ((rounded, exact), (rounded_p, exact_p))]
    print(f"cosines of hypergradient and p in bfloat16: {cosines}; bytes {less} of {whole}")
    assert cosine_similarity(single, exact, dim=0) > 0.99999
    assert min(cosines) >= 0.99
    assert less < 0.6 * whole
