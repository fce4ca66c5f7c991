"""What every training starts from: a base model, and the images of the tasks."""

from __future__ import annotations

from dataclasses import dataclass

from base_model import load_base
from task_data import DataArguments, load_data, make_datasets, trained_classes
from transformers import CLIPImageProcessorPil, CLIPModel

from jscpt_peft.data import ImageTaskDataset, TaskSet


@dataclass(frozen=True)
class Material:
    """A base model and a task set.

    Attributes:
        whole: the task set with all its classes.
        task_set: the same with the classes that are trained.
        source: where the base model is.
        clip: the base model.
        processor: its image processor.
        datasets: split -> images of `task_set`.
    """

    whole: TaskSet
    task_set: TaskSet
    source: str
    clip: CLIPModel
    processor: CLIPImageProcessorPil
    datasets: dict[str, ImageTaskDataset]

    @property
    def has_new_classes(self) -> bool:
        """Whether there are classes that training does not see."""
        return self.whole is not self.task_set


def load_material(data: DataArguments, base: str | None, seed: int) -> Material:
    """What the arguments name, `base` being `model_name_or_path`; errors as of what loads each."""
    whole = load_data(data, seed)
    task_set = trained_classes(whole, data)
    source, clip, processor = load_base(base)
    return Material(whole, task_set, source, clip, processor, make_datasets(task_set, processor, data, seed))
