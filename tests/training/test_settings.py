"""Arguments of training are checked where they are given, and every one of `TrainingArguments` works or is refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Annotated, get_args, get_origin

import prompted
import pytest
import torch
from task_data import DataArguments
from transformers import HfArgumentParser, TrainingArguments

from jscpt_peft import JSCPTConfig
from jscpt_peft.settings import Between, annotations_of
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.trainer_settings import ANNOTATIONS, REFUSED, usual_workers

WORKS = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm bf16 tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps logging_strategy logging_steps
    logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to
    run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size prediction_loss_only eval_on_start eval_accumulation_steps save_only_model
    save_strategy save_steps save_total_limit push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context ddp_backend ddp_timeout skip_memory_metrics resume_from_checkpoint
    """
NOT_OURS = {"do_train", "do_eval", "do_predict", "local_rank", "use_cache"}  # of scripts, launchers, language models


def arguments(**options):
    return JSCPTTrainingArguments(**{"output_dir": "x", "use_cpu": True, **options})


def test_every_inherited_argument_works_is_refused_or_is_not_ours():
    assert sorted([*WORKS.split(), *REFUSED, *NOT_OURS]) == sorted(each.name for each in fields(TrainingArguments))
    assert set(ANNOTATIONS) <= {*WORKS.split(), *REFUSED}


def test_images_are_fetched_ahead_for_a_gpu(monkeypatch):
    assert arguments().dataloader_num_workers == 0
    with pytest.raises(ValueError, match="dataloader_prefetch_factor"):  # which needs workers
        arguments(dataloader_prefetch_factor=4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(12))
    assert usual_workers(on_cpu=False) == 0  # there is no GPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (usual_workers(on_cpu=True), usual_workers(on_cpu=False)) == (0, 3)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert usual_workers(on_cpu=False) == 8
    monkeypatch.undo()
    monkeypatch.setattr("jscpt_peft.training.arguments.usual_workers", lambda _: 3)
    chosen = arguments()
    assert (chosen.dataloader_num_workers, chosen.dataloader_persistent_workers) == (3, True)
    assert JSCPTTrainingArguments.dataloader_pin_memory


OTHERS = {"dataloader_in_order": False, "length_column_name": "size", "label_smoothing_factor": 0.1}
OTHERS |= {"train_sampling_strategy": "sequential", "label_names": ["targets"], "debug": "overflow"}
OTHERS |= {"eval_do_concat_batches": False, "average_tokens_across_devices": False, "include_for_metrics": ["loss"]}
OTHERS |= {"include_num_input_tokens_seen": "all", "neftune_noise_alpha": 5.0, "ddp_bucket_cap_mb": 25}
OTHERS |= {"liger_kernel_config": {"rope": True}, "fsdp_config": {"min_num_params": 1}}
OTHERS |= {"accelerator_config": {"even_batches": 0}}
WORDS = {"torch_compile_backend", "torch_compile_mode", "optim_target_modules", "deepspeed", "fsdp"}


@pytest.mark.parametrize("name", [*REFUSED])
def test_what_would_do_nothing_is_refused(name):
    if name == "parallelism_config":
        pytest.skip("needs the objects of a launcher")
    value = OTHERS.get(name, "word" if name in WORDS else True)
    with pytest.raises(ValueError, match=f"`{name}=.* is not supported: "):
        arguments(**{name: value})
    arguments(**{name: getattr(arguments(), name)})  # as a copy of other arguments gives it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": math.nan}, "`learning_rate` must be a finite number, got nan"),
        ({"weight_decay": -1}, "`weight_decay` must be at least 0, got -1"),
        ({"adam_beta1": 1.0}, "`adam_beta1` must be below 1, got 1.0"),
        ({"seed": None}, "`seed` must be a whole number, got None"),
        ({"lower_steps": 2.5}, r"`lower_steps` must be a whole number.*, got 2\.5"),
        ({"max_steps": 10**30}, "`max_steps` must be a whole number, got 1000"),
        ({"learn_scheduler": 1}, "`learn_scheduler` must be True or False, got 1"),
        ({"learning_rate": "0.1"}, "`learning_rate` must be a finite number, got '0.1'"),
        ({"report_to": ["tensorbord"]}, "'tensorbord' is no tracker. Did you mean 'tensorboard'?"),
        ({"save_strategy": "epochs"}, "`save_strategy` must be one of .* Did you mean 'epoch'?"),
        ({"eval_strategy": False}, "`eval_strategy` must be one of 'no', 'steps', 'epoch', got False"),
        ({"optim": "sdg"}, "`optim` must be one of .* Did you mean 'sgd'?"),
        ({"log_level": "loud"}, "`log_level` must be one of"),
        ({"cagrad_c": 0.4}, "`cagrad_c=0.4` needs `weighting='cagrad'` or `gradient_aggregator='cagrad'`"),
        ({"famo_decay": 0.1, "weighting": "dwa"}, "`famo_decay=0.1` needs `weighting='famo'`: leave it out"),
        ({"affinity": "cosine", "weighting": "dwa"}, "`affinity='cosine'` is an option of Eqs. 4-6, whose place `w"),
        ({"weighting": "pcgrads"}, r"`weighting` must be one of .* Did you mean 'pcgrad'\?"),
        ({"lr_scheduler_kwargs": "{min_lr: 1}"}, "`lr_scheduler_kwargs` must be JSON"),
        ({"lr_scheduler_kwargs": "[1]"}, "`lr_scheduler_kwargs` must be a mapping or None, got"),
        ({"lr_scheduler_kwargs": {"min": 1}}, "`lr_scheduler_kwargs` .*the schedule 'cosine' takes no 'min'"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "`lr_scheduler_type` 'warmup_stable_decay' .* cannot be made"),
        ({"lr_scheduler_kwargs": {"num_cycles": math.nan}}, r"`lr_scheduler_kwargs\['num_cycles'\]` must be a finite"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}}, "does nothing with `lr_scheduler_type="),
        ({"optim_args": "nestrov=True"}, "the optimizer 'sgd' takes no 'nestrov': leave it out"),
        ({"optim": "adamw_torch", "optim_args": "fused=1"}, "the optimizer 'adamw_torch' takes no 'fused'"),
        ({"optim_args": "dampening=nan"}, "gives 'dampening' nan: it must be finite"),
        ({"optim_args": "dampening=0.1,dampening=0"}, "gives 'dampening' twice"),
        ({"optim": "adamw_torch", "momentum": 0.5}, "`momentum=0.5` does nothing with `optim='adamw_torch'`"),
        ({"adam_beta1": 0.5}, "`adam_beta1=0.5` does nothing with `optim='sgd'`"),
        ({"activation_checkpointing_kwargs": {"early_stop": False}}, "nothing without `activation_checkpointing`"),
        *(
            ({"activation_checkpointing": True, f"{kind}_checkpointing_kwargs": given}, f"`.*{kind}_.*{message}")
            for kind in ("activation", "gradient")
            for given, message in (({"reentrant": 0}, "mean 'use_reentrant'"), ({"use_reentrant": True}, "not work"))
        ),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "`load_best_model_at_end=True` needs an `eval_"),
        ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers=True` needs `dataloader_num_work"),
        ({"ddp_backend": "nccl"}, "`ddp_backend='nccl'` does not join processes on CPUs"),
        ({"learning_rate": 1e300}, "`learning_rate` must be at most 10000, got 1e"),
        ({"dataloader_num_workers": 10**9}, "`dataloader_num_workers` must be at most 1024"),
        ({"optim_args": "nesterov"}, "`optim_args` 'nesterov'.* cannot be made"),
        ({"optim": "galore_adamw"}, "`optim` 'galore_adamw' .* cannot be made"),
        ({"hvp": "finite_difference", "hypergradient_dtype": "bfloat16"}, "leave nothing of a finite difference"),
    ],
)  # fmt: skip
def test_values_are_checked_where_they_are_given(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(**options)


def test_values_that_are_set_later_are_checked_by_the_trainer(tmp_path):
    args = arguments(output_dir=str(tmp_path))
    args.check()
    args.learning_rate = math.nan
    with pytest.raises(ValueError, match="`learning_rate` must be a finite number, got nan"):
        JSCPTTrainer(prompted.prompted_clip(torch.float32), args)
    args.learning_rate = 0.1
    trainer = JSCPTTrainer(prompted.prompted_clip(torch.float32), args)
    args.metric_for_best_model = "mean_acuracy"
    with pytest.raises(ValueError, match=r"got 'mean_acuracy'\. Did you mean 'mean_accuracy'"):
        trainer.train()
    args.metric_for_best_model, args.lower_steps = "mean_accuracy", 2.5
    with pytest.raises(ValueError, match=r"`lower_steps` must be a whole number.*, got 2\.5"):
        trainer.train()


def numbers(annotation):
    """The numbers that an annotation lets grow without bounds."""
    if get_origin(annotation) is Annotated:
        bounds = [each for each in annotation.__metadata__ if isinstance(each, Between)]
        return numbers(annotation.__origin__) if all(math.isinf(each.high) for each in bounds) else []
    return [annotation] * (annotation in (int, float)) + [e for inner in get_args(annotation) for e in numbers(inner)]


@pytest.mark.parametrize("kind", [JSCPTConfig, JSCPTTrainingArguments, DataArguments])
def test_every_number_has_an_upper_bound(kind):
    inherited = ANNOTATIONS if issubclass(kind, TrainingArguments) else {}
    unbounded = {name for name, annotation in (annotations_of(kind) | inherited).items() if numbers(annotation)}
    assert unbounded <= {"init_seed", "local_rank", "prompt_init_token_ids", "base_dimensions", *REFUSED}


def test_right_values_are_taken_as_they_are():
    made = arguments(learning_rate=1, max_steps=3, lr_scheduler_kwargs='{"num_cycles": 1}', optim_args="nesterov=True")
    assert (made.learning_rate, made.lr_scheduler_kwargs) == (1, {"num_cycles": 1})
    assert vars(replace(made, seed=5)).keys() == vars(made).keys()
    [parsed] = HfArgumentParser(JSCPTTrainingArguments).parse_args_into_dataclasses(["--output_dir", "x", "--use_cpu"])
    assert vars(parsed).keys() == vars(made).keys()
