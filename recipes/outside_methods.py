"""Methods that are none of the library's, for `--method` of train.py and reproduce.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADAMW = {"optim": "adamw_torch", "weight_decay": 1e-2}
# Name -> settings of training: their own, whatever the task set's, which are those of prompts.
OUTSIDE: Mapping[str, Mapping[str, Any]] = {
    "clip_lora": {**_ADAMW, "learning_rate": 2e-4},
    "linear_probe": {**_ADAMW, "learning_rate": 1e-3},
}
