"""Algorithm 1: training the prompts and the scheduler."""

from .arguments import JSCPTTrainingArguments
from .trainer import JSCPTTrainer
from .warm_up import warm_up_cosines

__all__ = ["JSCPTTrainer", "JSCPTTrainingArguments", "warm_up_cosines"]
