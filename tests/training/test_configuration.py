"""What a checkpoint must have in common with the run that goes on from it, as the dataclasses have it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import SimpleNamespace

from peft import PeftConfig
from transformers import TrainingArguments

from jscpt_peft import JSCPTConfig
from jscpt_peft.training import JSCPTTrainingArguments
from jscpt_peft.training.configuration import (
    INHERITED,
    IRRELEVANT,
    OPTIMIZERS,
    STORED,
    fixed_configuration,
    reproducing_configuration,
)


@dataclass
class LargerConfig(JSCPTConfig):
    new_part: str = "none"


@dataclass
class MoreArguments(JSCPTTrainingArguments):
    new_option: float = 0.5


def names(*dataclasses):
    return {each.name for dataclass in dataclasses for each in fields(dataclass)}


def test_a_new_field_takes_part_by_itself(tmp_path):
    adapter, args = LargerConfig(tasks={"photo": ["cat"]}), MoreArguments(output_dir=str(tmp_path), use_cpu=True)
    model = SimpleNamespace(active_jscpt_config=adapter, active_peft_config=adapter, trained_task=None)
    fixed, reproducing = fixed_configuration(model, args), reproducing_configuration(model, args, {})
    assert (fixed["new_part"], reproducing["new_option"]) == ("none", 0.5)
    assert names(LargerConfig) - names(PeftConfig) - STORED <= fixed.keys()
    assert names(MoreArguments) - names(TrainingArguments) - IRRELEVANT <= fixed.keys() | reproducing.keys()
    assert {"optim", "weighting", "gradient_aggregator"} <= set(OPTIMIZERS) <= fixed.keys()
    assert set(INHERITED) <= reproducing.keys()


def test_no_exception_names_what_is_not_there():
    assert names(JSCPTConfig) >= STORED and names(JSCPTTrainingArguments) >= IRRELEVANT
