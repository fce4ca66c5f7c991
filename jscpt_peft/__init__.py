"""JSCPT: joint scheduling of causal prompts and tasks for CLIP, as a PEFT method.

Importing this package registers the PEFT type `JSCPT` with `get_peft_model` and `PeftModel.from_pretrained`.
"""

from .model import JSCPTConfig, JSCPTModel, JSCPTOutput

__version__ = "0.1.0"

__all__ = ["JSCPTConfig", "JSCPTModel", "JSCPTOutput", "__version__"]
