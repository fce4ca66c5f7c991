"""Trains on task sets for some steps, each in a process of its own, and prints what memory it and its workers took.

`python tests/memory_program.py '[{"name": "few_shot_10", "train_fraction": 1.0}]' FOLDER`: a line of JSON each, in
bytes.
`anonymous` is what the processes themselves hold after the last step; `all` is the most at any time, mapped files
included, of which the system keeps as much as it has room for.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import threading
from pathlib import Path

import psutil
import torch
from adapted import adapted_clip
from transformers import TrainerCallback

from jscpt_peft.data import ImageTaskDataset, image_transform, load_task_set
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments


class Watch(threading.Thread):
    """Looks at the memory twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):  # a look costs milliseconds per process
            self.most = max(self.most, memory()["all"])


class Held(TrainerCallback):
    """Looks after the last step, when the data workers still run: what they hold, and not what passes."""

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:  # noqa: ARG002
        self.anonymous = memory()["anonymous"]


def memory() -> dict[str, int]:
    """Of this process, its workers, and the one that has imported all for it; pages that they share count once."""
    process = psutil.Process().parent()
    found = dict.fromkeys(("Pss", "Pss_Anon"), 0)
    for each in (process, *process.children(recursive=True)):
        try:
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="utf-8")
        except OSError:  # it has just ended
            continue
        for name, kilobytes in re.findall(r"^(Pss|Pss_Anon): +(\d+) kB", text, re.MULTILINE):
            found[name] += int(kilobytes) * 1024
    return {"all": found["Pss"], "anonymous": found["Pss_Anon"]}


def measure(options: dict, folder: str) -> None:
    watch = Watch()
    watch.start()
    task_set = load_task_set(**options)
    images = {
        split: ImageTaskDataset(task_set.split(split), image_transform(64, (0.5,) * 3, (0.25,) * 3, split == "train"))
        for split in ("train", "dev")
    }
    some = [table.take(16) for table in task_set.split("validation")]  # of which there are no more with more images
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
        adapted_clip(tasks=task_set.class_names, num_shared_tokens=1, num_task_tokens=1),
        arguments,
        train_dataset=images["train"],
        dev_dataset=images["dev"],
        eval_dataset=ImageTaskDataset(some, images["dev"].transform),
        callbacks=[held := Held()],
    )
    trainer.train()
    watch.done.set()
    watch.join()
    count = {split: sum(len(task.split(split)) for task in task_set) for split in ("train", "test")}
    found = {"all": watch.most, "anonymous": held.anonymous, **count, "steps": trainer.state.global_step}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, options in enumerate(json.loads(sys.argv[1])):
        arguments = (options, f"{sys.argv[2]}/{number}")
        process = multiprocessing.get_context("fork").Process(target=measure, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)
