"""The methods that the library carries: name -> the few settings that make each (`JSCPTConfig.for_method`).

A method is what its `structure` says. `paper` are the settings that the JSCPT paper standardises all methods to
(section 4.1), `original` those of the method's own publication; where both are silent, the defaults hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .choices import check_choice

HYPERPARAMETERS = ("paper", "original")
PHOTO = "a photo of a {}."
UNIFORM = {"prompt_scheduling": False, "task_scheduling": False, "learn_scheduler": False}


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        summary: one line on it.
        structure: fields of `JSCPTConfig` that make the method what it is; nothing may override them.
        at_least: the same for numbers, which may be larger.
        paper, original: further fields of `JSCPTConfig`, by whose hyperparameters they are.
        training: fields of `JSCPTTrainingArguments` that belong to the method.
        paper_training, original_training: further ones, by whose hyperparameters they are.
        published_parameters: number of trainable parameters for ViT-B/16 with `original` settings, as published.
        single_task: whether there is a form in which every task learns alone (`JSCPTConfig(single_task=True)`).
    """

    summary: str
    structure: Mapping[str, Any]
    at_least: Mapping[str, int] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    paper_training: Mapping[str, Any] = field(default_factory=dict)
    original_training: Mapping[str, Any] = field(default_factory=dict)
    published_parameters: int | None = None
    single_task: bool = False


_JSCPT = {"prompts": "concatenated", "towers": "both", "intervention": "mask_mlp", "learn_masks": True}
# CoOp's own schedule: 200 epochs for 16 shots, of 32 images.
_COOP_TRAINING = {
    "learning_rate": 2e-3,
    "weight_decay": 5e-4,
    "num_train_epochs": 200.0,
    "per_device_train_batch_size": 32,
}

METHODS: dict[str, Method] = {
    "zero_shot": Method(
        "CLIP as it is",
        {"num_shared_tokens": 0, "num_task_tokens": 0, "intervention": "none", "class_residual": "none"},
        paper={"class_template": PHOTO},
        original={"class_template": PHOTO},
        training=UNIFORM,
        published_parameters=0,
    ),
    "coop": Method(
        "shared text prompts before the first block (CoOp, IJCV 2022)",
        {"prompts": "concatenated", "towers": "text", "prompt_depth": 1, "num_task_tokens": 0, "intervention": "none"},
        at_least={"num_shared_tokens": 1},
        paper={"num_shared_tokens": 16},
        original={"num_shared_tokens": 16},
        training=UNIFORM,
        original_training=_COOP_TRAINING,
        published_parameters=8_192,
        single_task=True,
    ),
    "vpt": Method(
        "shared vision prompts in every block, fixed texts (VPT-deep, ECCV 2022)",
        {"prompts": "concatenated", "towers": "vision", "num_task_tokens": 0, "intervention": "none"},
        at_least={"num_shared_tokens": 1},
        paper={"num_shared_tokens": 16, "class_template": PHOTO},
        original={"num_shared_tokens": 16, "class_template": PHOTO, "vision_init": "uniform"},
        training=UNIFORM,
        original_training=_COOP_TRAINING,
        published_parameters=147_456,
        single_task=True,
    ),
    "maple": Method(
        "shared text prompts and linear maps of them as vision prompts (MaPLe, CVPR 2023)",
        {"prompts": "coupled", "towers": "both", "num_task_tokens": 0, "intervention": "none"},
        at_least={"num_shared_tokens": 1},
        paper={"num_shared_tokens": 16},
        original={
            "num_shared_tokens": 2,
            "prompt_depth": 9,
            "prompt_init": "a photo",
            "class_template": "of a {}.",
        },
        training=UNIFORM,
        original_training={
            "learning_rate": 3.5e-3,
            "weight_decay": 5e-4,
            "num_train_epochs": 5.0,
            "per_device_train_batch_size": 4,
        },
        published_parameters=3_555_072,
        single_task=True,
    ),
    "clip_adapter": Method(
        "one small residual network on the image features of all tasks, fixed texts (CLIP-Adapter, IJCV 2024)",
        {"num_shared_tokens": 0, "num_task_tokens": 0, "intervention": "adapter"},
        paper={"class_template": PHOTO},
        original={"class_template": PHOTO},
        training=UNIFORM,
        original_training=_COOP_TRAINING,
        published_parameters=131_072,
        single_task=True,
    ),
    "mvlpt": Method(
        "shared text and vision prompts that a small transformer block couples (MVLPT with UPT, WACV 2024)",
        {"prompts": "unified", "towers": "both", "num_task_tokens": 0, "intervention": "none"},
        at_least={"num_shared_tokens": 1},
        paper={"num_shared_tokens": 16},
        original={"num_shared_tokens": 4, "vision_init": "uniform", "class_position": "middle"},
        training=UNIFORM,
        original_training=_COOP_TRAINING,
        published_parameters=566_400,
        single_task=True,
    ),
    "mmap": Method(
        "prompts per group and per task, of both towers from one small source (MmAP-style, AAAI 2024)",
        {"prompts": "kronecker", "towers": "both", "intervention": "none"},
        at_least={"num_shared_tokens": 1, "num_task_tokens": 1},
        paper={"num_shared_tokens": 16, "num_task_tokens": 16},
        original={"num_shared_tokens": 16, "num_task_tokens": 16},
        training=UNIFORM,
        single_task=True,
    ),
    "hipro": Method(
        "a prompt on every node of a tree of tasks (HiPro-style, CVPR 2023)",
        {"prompts": "tree", "towers": "both", "intervention": "none"},
        at_least={"num_shared_tokens": 1, "num_task_tokens": 1},
        paper={"num_shared_tokens": 16, "num_task_tokens": 16},
        original={"num_shared_tokens": 16, "num_task_tokens": 16},
        training=UNIFORM,
        single_task=True,
    ),
    "jscpt": Method("joint scheduling of causal prompts and tasks (CVPR 2025)", _JSCPT),
    "jscpt_no_feature_selection": Method(
        "JSCPT with masks fixed at 0.5", {**_JSCPT, "learn_masks": False}
    ),
    "jscpt_no_prompt_scheduling": Method(
        "JSCPT without the factor of causal effects", _JSCPT, training={"prompt_scheduling": False}
    ),
    "jscpt_no_task_scheduling": Method(
        "JSCPT without the factor of affinities", _JSCPT, training={"task_scheduling": False}
    ),
    "jscpt_cagrad": Method(
        "JSCPT with CAGrad's weights for the factor of affinities", _JSCPT, training={"gradient_aggregator": "cagrad"}
    ),
    "jscpt_projected": Method(
        "shared prompts through a linear map per task, causal features with backdoor adjustment, and weights from "
        "gradient cosines and losses (JSCPT as a secondary summary tells it)",
        {"prompts": "projected", "towers": "both", "num_task_tokens": 0, "intervention": "decoupled"},
        at_least={"num_shared_tokens": 1},
        original={"prompt_depth": 1},
        training={"weighting": "loss_cosine"},
    ),
    "mt_crl": Method(
        "JSCPT's prompts before feature modules, a learned graph from tasks to modules, and invariance over "
        "half-batches (MT-CRL-style, after NeurIPS 2022)",
        {"prompts": "concatenated", "towers": "both", "intervention": "modular"},
        training=UNIFORM,
    ),
}  # fmt: skip


def method_fields(name: str, hyperparameters: str = "paper", **overrides: Any) -> dict[str, Any]:
    """Fields of `JSCPTConfig` for a method.

    Args:
        name: one of `METHODS`.
        hyperparameters: whose settings, `"paper"` or `"original"`.
        overrides: fields that replace or add to them.

    Raises:
        ValueError: there is no such method, or an override would make another method of it.
    """
    method = METHODS[_checked(name, hyperparameters)]
    if "method" in overrides:
        raise ValueError(f"`method` is {overrides['method']!r} beside the method {name!r}: name one of them.")
    for field_name, value in overrides.items():
        needed = method.structure.get(field_name, value)
        fewest = method.at_least.get(field_name)
        too_few = (
            fewest is not None and isinstance(value, int) and value < fewest
        )  # other types: `JSCPTConfig`'s affair
        if (value is not needed and value != needed) or too_few:
            words = f"{needed!r}" if fewest is None else f"at least {fewest}"
            raise ValueError(
                f"`{field_name}` is {value!r}, but method {name!r} requires {words}: use "
                f"`JSCPTConfig.for_method({name!r}, tasks=...)` without it, or leave the method out."
            )
    chosen = method.paper if hyperparameters == "paper" else method.original
    return {**method.structure, **chosen, **overrides}


def training_options(name: str, hyperparameters: str = "paper") -> dict[str, Any]:
    """Fields of `JSCPTTrainingArguments` for a method; arguments and errors as for `method_fields`."""
    method = METHODS[_checked(name, hyperparameters)]
    chosen = method.paper_training if hyperparameters == "paper" else method.original_training
    return {**method.training, **chosen}


def check_single_task(name: str, single_task: bool) -> None:
    """Raises a `ValueError` that names the methods with a single-task form where `single_task` asks `name` for one."""
    if single_task and not METHODS[name].single_task:
        others = ", ".join(repr(other) for other, method in METHODS.items() if method.single_task)
        raise ValueError(
            f"`single_task` is True, but method {name!r} has no single-task form: it learns nothing, or the tasks' "
            f"connections are what it is about. Leave it out, or choose one of {others}."
        )


def check_training(name: str, arguments: Any) -> None:
    """Raises a `ValueError` where training arguments would make another method of a variant of JSCPT.

    Every `weighting` goes with any method, and so do the factors of Eq. 6 with those that weigh tasks alike.
    """
    training = {} if METHODS[name].training is UNIFORM else METHODS[name].training
    for field_name, needed in training.items():
        value = getattr(arguments, field_name)
        if field_name != "weighting" and value != needed:
            raise ValueError(
                f"`{field_name}` is {value!r}, but method {name!r} requires {needed!r}: leave it out, or choose "
                "another method."
            )


def _checked(name: str, hyperparameters: str) -> str:
    check_choice("method", name, METHODS)
    check_choice("hyperparameters", hyperparameters, HYPERPARAMETERS)
    return name
