"""The PEFT method: all that a forward pass needs."""

from .config import JSCPTConfig
from .losses import JSCPTOutput
from .tuner import JSCPTModel

__all__ = ["JSCPTConfig", "JSCPTModel", "JSCPTOutput"]
