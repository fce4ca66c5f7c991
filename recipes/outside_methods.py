"""Methods that are none of the library's, for `--method` of train.py and reproduce.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADAMW = {"optim": "adamw_torch", "weight_decay": 1e-2}
# Name -> by whose hyperparameters -> settings of training, whatever the task set's, which are those of prompts. The
# original ones belong to thousands of steps on ViT-B/16, the others to hundreds on a small CLIP.
OUTSIDE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "clip_lora": {"paper": {**_ADAMW, "learning_rate": 3e-3}, "original": {**_ADAMW, "learning_rate": 2e-4}},
    "linear_probe": {whose: {**_ADAMW, "learning_rate": 1e-3} for whose in ("paper", "original")},
}
