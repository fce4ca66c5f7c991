"""Tasks, their images, and the batches made of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jscpt_peft.data.batches import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.data.task import SPLITS, Task, TaskSet, read_column
from jscpt_peft.data.transforms import image_transform, to_rgb

if TYPE_CHECKING:
    from jscpt_peft.data.folder import folder_task_set
    from jscpt_peft.data.load import TASK_SETS, load_task_set
    from jscpt_peft.data.manifest import read_manifest, write_manifest
    from jscpt_peft.data.shapes import shapes_task_set

__all__ = [
    "SPLITS",
    "TASK_SETS",
    "ImageTaskDataset",
    "Task",
    "TaskBalancedBatchSampler",
    "TaskSet",
    "collate",
    "folder_task_set",
    "image_transform",
    "load_task_set",
    "read_column",
    "read_manifest",
    "shapes_task_set",
    "to_rgb",
    "write_manifest",
]

# What imports `datasets`, which takes seconds: only when it is asked for.
_LATER = {
    "TASK_SETS": "load",
    "folder_task_set": "folder",
    "load_task_set": "load",
    "read_manifest": "manifest",
    "shapes_task_set": "shapes",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
