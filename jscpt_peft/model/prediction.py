"""From pictures to class names with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

if TYPE_CHECKING:
    from .tuner import JSCPTModel


@torch.no_grad()
def predict(
    model: JSCPTModel,
    images: Sequence[Image.Image],
    task_id: int,
    batch_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> list[dict[str, float]]:
    """Probabilities of one task's classes for each image, best first; arguments as for `JSCPTModel.predict`."""
    from jscpt_peft.data import image_transform  # here, since `datasets` takes seconds to import

    transform = image_transform(model.model.config.vision_config.image_size, image_mean, image_std, train=False)
    class_names = list(model.active_jscpt_config.tasks.values())[task_id]
    device, training = model.model.device, model.training
    model.eval()
    try:
        pixels = (
            torch.stack([transform(image, None) for image in images[start : start + batch_size]])
            for start in range(0, len(images), batch_size)
        )
        logits = [model.classify(each.to(device), task_id).logits[:, : len(class_names)] for each in pixels]
    finally:
        model.train(training)
    return [
        {class_names[label]: float(p) for label, p in zip(order, probabilities, strict=True)}
        for batch in logits
        for probabilities, order in zip(*batch.softmax(-1).sort(descending=True), strict=True)
    ]
