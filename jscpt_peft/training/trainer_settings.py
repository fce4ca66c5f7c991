"""What holds of the arguments that come from `TrainingArguments`: what they may hold, and which are refused, and why.

An argument that would do nothing here is refused, rather than passed over in silence.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Annotated, Any

import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import strtobool
from transformers.utils.logging import get_log_levels_dict

from jscpt_peft.choices import nearest
from jscpt_peft.settings import (
    MOST,
    Between,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Rate,
)

_SEED = Annotated[int, Between(0, 2**32 - 1)]
_DECAY = Annotated[float, Between(0, 1, open_high=True)]
_LOG_LEVEL = Annotated[str, OneOf([*get_log_levels_dict(), "passive"])]
ANNOTATIONS: dict[str, Any] = {
    "output_dir": Name | os.PathLike | None,
    "resume_from_checkpoint": str | bool | None,
    "accelerator_config": dict | AcceleratorConfig | str | None,
    "debug": str | list | None,
    "max_steps": Annotated[int, Between(-1, MOST)],
    "gradient_accumulation_steps": PositiveInt,
    "eval_accumulation_steps": PositiveInt | None,
    "torch_empty_cache_steps": PositiveInt | None,
    "weight_decay": Rate,
    "adam_beta1": _DECAY,
    "adam_beta2": _DECAY,
    "adam_epsilon": Annotated[float, Between(0, 1)],
    "seed": _SEED,
    "data_seed": _SEED | None,
    "logging_steps": PositiveFloat,
    "save_steps": PositiveFloat,
    "eval_steps": NonNegativeFloat | None,
    "eval_delay": NonNegativeFloat,
    "save_total_limit": NonNegativeInt | None,
    "dataloader_num_workers": Annotated[int, Between(0, 1024)] | None,
    "dataloader_prefetch_factor": Annotated[int, Between(1, 1024)] | None,
    "dataloader_multiprocessing_context": Annotated[str, OneOf(multiprocessing.get_all_start_methods())] | None,
    "ddp_backend": Annotated[str, OneOf(["gloo", "nccl", "mpi", "ccl", "hccl", "cncl", "mccl"])] | None,
    "ddp_timeout": PositiveInt,
    "log_level": _LOG_LEVEL,
    "log_level_replica": _LOG_LEVEL,
}
"""Annotations of inherited fields, where those of `TrainingArguments` say too little or are not true."""

_OFF = (None, False, "", [], {})
_COMPILE = "the upper level differentiates twice. `compile_blocks` compiles what lower steps run."
_WHOLE = "per-task gradients need whole parameters, which are a few MB. Leave it out of the arguments."
_BATCHES = "every batch has `per_device_train_batch_size` images of every task, in an order of its own. Leave it out."
_GATHERED = "evaluation gathers tensors of all batches and computes metrics once. Leave it out."
_NO_WRAPPER = "gradients are summed without `DistributedDataParallel`. Leave it out."
_HALF = "it would turn the prompts themselves into half precision. Use `bf16=True`, which evaluates in bfloat16 too."
_TEXT = "it is for language models. Leave it out."
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), (_OFF, _COMPILE)),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), (_OFF, _WHOLE)),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_bucket_cap_mb"), ((None,), _NO_WRAPPER)),
    **dict.fromkeys(("ddp_broadcast_buffers", "ddp_static_graph"), ((None,), _NO_WRAPPER)),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), (_OFF, _HALF)),
    **dict.fromkeys(("neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config"), (_OFF, _TEXT)),
    "include_num_input_tokens_seen": (("no", False), _TEXT),
    **dict.fromkeys(("eval_use_gather_object", "include_for_metrics", "batch_eval_metrics"), (_OFF, _GATHERED)),
    "eval_do_concat_batches": ((True,), _GATHERED),
    "dataloader_drop_last": (_OFF, _BATCHES),
    "dataloader_in_order": ((True,), _BATCHES),
    "train_sampling_strategy": (("random",), _BATCHES),
    "length_column_name": (("length",), _BATCHES),
    "remove_unused_columns": (_OFF, "data sets give what is needed and nothing else. Leave it out."),
    "label_names": ((["labels"],), "batches have `labels`. Leave it out."),
    "fp16": (_OFF, "second derivatives overflow in float16. Use `bf16=True`."),
    "optim_target_modules": (_OFF, "the optimizer gets the adapter's parameters, all of them. Leave it out."),
    "label_smoothing_factor": ((0,), "L_i is the cross-entropy of Eq. 3. Leave it out."),
    "auto_find_batch_size": (
        _OFF,
        "batches have `per_device_train_batch_size` images of every task. Lower that where memory runs out, and take "
        "`gradient_accumulation_steps` for the rest.",
    ),
    "accelerator_config": ((None, {}, AcceleratorConfig()), "batches are shared among processes here. Leave it out."),
    "average_tokens_across_devices": ((True,), "losses are means over the images of all processes. Leave it out."),
    "save_on_each_node": (_OFF, "the nodes share one `output_dir`. Leave it out."),
    "enable_jit_checkpoint": (
        _OFF,
        "the recipes save on SIGTERM by themselves; elsewhere add `jscpt_peft.training.callbacks.StopOnInterrupt`.",
    ),
    "debug": (_OFF, "it watches modules that the fast path does not call. Leave it out."),
}
"""Argument -> the values that are fine, and why no other one is."""


def check_refused(args: Any) -> None:
    """Raises a `ValueError` that says why where an argument is refused."""
    for name, (fine, why) in REFUSED.items():
        value = getattr(args, name)
        if value not in fine:
            raise ValueError(f"`{name}={value!r}` is not supported: {why}")


def check_trackers(report_to: str | list[str] | None) -> None:
    """Raises a `ValueError` where `report_to` names a tracker that is unknown or not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("all", "none") or name in get_available_reporting_integrations():
            continue
        problem = "is not installed" if name in INTEGRATION_TO_CALLBACK else "is no tracker"
        raise ValueError(f"`report_to`: {name!r} {problem}.{nearest(name, INTEGRATION_TO_CALLBACK)}")


def check_launcher(args: Any) -> None:
    """What the surroundings ask for: visible GPUs, and the configuration of `accelerate launch`."""
    if args.n_gpu > 1:
        raise ValueError(
            f"one process trains on one device, but {args.n_gpu} GPUs are visible: start one process a GPU with "
            f"`accelerate launch --multi_gpu --num_processes {args.n_gpu}`, or set CUDA_VISIBLE_DEVICES=0."
        )
    if args.mixed_precision == "fp16":
        raise ValueError(f"`fp16=True` is not supported: {REFUSED['fp16'][1]}")
    for name in ("fsdp", "deepspeed"):
        if strtobool(os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false")):
            raise ValueError(
                f"`{name}` is not supported: per-task gradients need whole parameters, which are a few MB. Leave "
                "it out of the configuration of `accelerate launch`."
            )


def usual_workers(on_cpu: bool) -> int:
    """Data workers where nobody says how many: for a GPU this process's share of the CPUs, at most 8; else none."""
    if on_cpu or not torch.cuda.is_available():
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    affinity = getattr(os, "sched_getaffinity", None)  # a container or a job may have some of the CPUs only
    cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(8, max(1, cpus // processes))
