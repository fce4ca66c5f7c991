"""Trains on a task set for some steps and prints the most memory that the process and its data workers have held.

`python tests/memory_program.py '{"name": "few_shot_10", "train_fraction": 1.0}' FOLDER`: one line of JSON, in bytes.
`anonymous` is what is the processes' own; `all` adds their share of mapped files, of which the system keeps as much as
it has room for.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path

import psutil
import torch
from paths import TINY_CLIP
from peft import get_peft_model
from transformers import CLIPImageProcessorPil, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset, image_transform, load_task_set
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments


class Watch(threading.Thread):
    """Looks at the memory of this process and its children twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = {"all": 0, "anonymous": 0}
        self.done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.done.wait(0.5):  # a look costs milliseconds a process
            found = [memory(each.pid) for each in (process, *process.children(recursive=True))]
            self.most = {name: max(most, sum(each[name] for each in found)) for name, most in self.most.items()}


def memory(pid: int) -> dict[str, int]:
    """Proportional shares: pages that several processes share are counted once in all."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:  # it has just ended
        text = ""
    kilobytes = dict(re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE))
    return {name: int(kilobytes.get(key, 0)) * 1024 for name, key in {"all": "Pss", "anonymous": "Pss_Anon"}.items()}


def main(options: dict, folder: str) -> dict[str, int]:
    watch = Watch()
    before = memory(os.getpid())
    watch.start()
    task_set = load_task_set(**options)
    clip, processor = CLIPModel.from_pretrained(TINY_CLIP), CLIPImageProcessorPil.from_pretrained(TINY_CLIP)
    statistics = {"mean": processor.image_mean, "std": processor.image_std}
    size = processor.crop_size["height"]
    images = {
        split: ImageTaskDataset(task_set.split(split), image_transform(size, **statistics, train=split == "train"))
        for split in ("train", "dev", "validation")
    }
    config = JSCPTConfig(tasks=task_set.class_names, num_shared_tokens=1, num_task_tokens=1)
    arguments = JSCPTTrainingArguments(
        output_dir=folder,
        max_steps=2,
        learn_scheduler=False,  # its share of memory is not what is asked about here
        per_device_train_batch_size=4,
        dataloader_num_workers=2,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=2,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = JSCPTTrainer(
        get_peft_model(clip, config),
        arguments,
        train_dataset=images["train"],
        dev_dataset=images["dev"],
        eval_dataset=images["validation"],
    )
    trainer.train()
    watch.done.set()
    watch.join()
    count = {split: sum(len(task.split(split)) for task in task_set) for split in ("train", "test")}
    return {**watch.most, **count, "before": before["anonymous"], "steps": trainer.state.global_step}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(json.loads(sys.argv[1]), sys.argv[2])))
