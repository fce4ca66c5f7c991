"""Algorithm 1: training the prompts and the scheduler."""

from .arguments import JSCPTTrainingArguments
from .trainer import JSCPTTrainer

__all__ = ["JSCPTTrainer", "JSCPTTrainingArguments"]
