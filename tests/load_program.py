"""Loads task sets in a process of its own, as a user's program does, and prints what it found as JSON lines.

Waits, as between tries to reach the Hub, are cut short.

`python tests/load_program.py '[{"name": "dtd", "shots": 1}, ...]'`: one line a task set, or `{"error": message}`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from benchmark_data import shown

from jscpt_peft.data import SPLITS, load_task_set, read_column


def summary(options: dict[str, Any]) -> dict[str, Any]:
    try:
        task_set = load_task_set(**options)
    except (OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    tasks = {}
    for task in task_set:
        tables = {split: task.split(split) for split in SPLITS}
        tasks[task.name] = {
            "class_names": list(task.class_names),
            "template": task.template,
            "keys": {split: read_column(table, "key") for split, table in tables.items()},
            "labels": {split: read_column(table, "label") for split, table in tables.items()},
            # (label, number, domain) of every tenth image
            "shown": {
                split: [shown(tables[split][index]["image"]) for index in range(0, len(tables[split]), 10)]
                for split in ("train", "test")
            },
        }
    return {"tasks": tasks, "manifest": task_set.manifest}


if __name__ == "__main__":
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    logging.basicConfig(level=logging.WARNING)  # on stderr
    for each in json.loads(sys.argv[1]):
        print(json.dumps(summary(each)), flush=True)
