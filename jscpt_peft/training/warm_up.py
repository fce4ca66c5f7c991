"""How alike the tasks' gradients are before any training: what groups and trees of tasks are made from."""

from __future__ import annotations

from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader

from jscpt_peft.data import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.scheduling import gradient_cosine

from .data_checks import check_data
from .distributed import process_index, world_size
from .task_gradients import Batch, shared_gramian, task_gradients


def warm_up_cosines(
    model: PeftModel,
    dataset: ImageTaskDataset,
    batches: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    workers: int = 0,
) -> Tensor:
    """Cosines `[N, N]` of the tasks' gradients with respect to the shared prompts (as in Eq. 5); nothing is learned.

    The gradients are means over all images of the pass, so that little of a batch's noise is left. Of several
    processes each goes over its share, and all get the same cosines.

    Args:
        model: a JSCPT model whose tasks share prompts, such as one with `num_task_tokens=0`, on its device.
        dataset: training images of its tasks.
        batches: how many, over all processes.
        batch_size: images per task of each of them.
        seed: of their order.
        workers: processes that load images.

    Raises:
        ValueError: the images are not those of the model's tasks, or the tasks share no prompts.
        FloatingPointError: a task's gradient is not finite.
    """
    check_data(model, train_dataset=dataset)
    sampler = TaskBalancedBatchSampler(dataset.sizes, batch_size, seed, process_index(), world_size())
    keys = [sampler.batch(number) for number in range(max(1, batches // world_size()))]
    total = None
    for inputs in DataLoader(dataset, batch_sampler=keys, collate_fn=collate, num_workers=workers):
        batch = Batch.checked(inputs, model.active_jscpt_config.tasks, model.device)
        sums, _ = task_gradients(model, batch)
        total = sums if total is None else total + sums
    means = total.over_processes()[0].means()
    if not means.usable.all():
        wrong = [name for name, usable in zip(model.task_names, means.usable, strict=True) if not usable]
        raise FloatingPointError(f"the gradients of {wrong} are not finite, or there are no images of theirs.")
    gramian = shared_gramian(model, means.gradients)
    if not gramian.diagonal().all():
        raise ValueError("the model's tasks share no prompts: give one with `num_shared_tokens` above 0.")
    return gradient_cosine(gramian).cpu()
