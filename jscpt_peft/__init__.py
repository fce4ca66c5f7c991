"""JSCPT: joint scheduling of causal prompts and tasks for CLIP, as a PEFT method.

Importing this package registers the PEFT type `JSCPT` with `get_peft_model` and `PeftModel.from_pretrained`.
"""

from .model import JSCPTConfig, JSCPTModel, JSCPTOutput
from .model.registration import register
from .peft_model import JSCPTPeftModel

__version__ = "0.2.0.dev0"

register("jscpt", JSCPTConfig, JSCPTModel, JSCPTPeftModel)

__all__ = ["JSCPTConfig", "JSCPTModel", "JSCPTOutput", "JSCPTPeftModel", "__version__"]
