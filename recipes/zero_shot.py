"""Zero-shot CLIP on a task set, in the form of a JSCPT model."""

from __future__ import annotations

from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import TaskSet


def zero_shot_model(clip: CLIPModel, source: str, task_set: TaskSet) -> PeftModel:
    """Zero-shot CLIP is a JSCPT model without prompts and feature selection, under the tasks' templates.

    Args:
        clip: the base model; `model.unload()` gives it back as it was.
        source: where it came from, for its tokenizer.
        task_set: its tasks, classes and templates.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    token_ids = {
        task.name: tokenizer([task.template.format(name) for name in task.class_names]).input_ids for task in task_set
    }
    config = JSCPTConfig(
        tasks=task_set.class_names,
        class_token_ids=token_ids,
        num_shared_tokens=0,
        num_task_tokens=0,
        intervention="none",
    )
    return get_peft_model(clip, config)
