"""Tasks, their images, and the batches made of them."""

from jscpt_peft.data.batches import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.data.folder import folder_task_set
from jscpt_peft.data.load import TASK_SETS, load_task_set
from jscpt_peft.data.manifest import read_manifest, write_manifest
from jscpt_peft.data.shapes import shapes_task_set
from jscpt_peft.data.task import SPLITS, Task, TaskSet, read_column
from jscpt_peft.data.transforms import image_transform, to_rgb

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
