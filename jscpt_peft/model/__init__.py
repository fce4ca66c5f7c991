"""The PEFT method: all that a forward pass needs."""

from .classifier import JSCPTOutput
from .config import JSCPTConfig
from .peft_model import JSCPTPeftModel
from .registration import register
from .tuner import JSCPTModel

register("jscpt", JSCPTConfig, JSCPTModel)

__all__ = ["JSCPTConfig", "JSCPTModel", "JSCPTOutput", "JSCPTPeftModel"]
