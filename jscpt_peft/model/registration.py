"""Registers JSCPT with PEFT: the only file that touches PEFT's private state.

PEFT keeps its methods in the enum `PeftType`, which has no public way to grow. `add_peft_type` adds a member as the
enum machinery itself would; `register` then uses PEFT's own `register_peft_method`. The class of the `PeftModel` is
chosen by a configuration's `task_type`: `register` adds one of JSCPT's own. Nothing of PEFT is replaced.
"""

from __future__ import annotations

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

TASK_TYPE = "JSCPT"
"""`task_type` of a `JSCPTConfig` in memory; its file says none."""


def add_peft_type(name: str) -> PeftType:
    """The member `PeftType.<name>`, added if it is not there yet.

    Args:
        name: upper-case name of the PEFT method; also the value that `adapter_config.json` stores.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    setattr(PeftType, name, member)  # must precede the maps: EnumMeta refuses to reassign what they already hold
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


def register(name: str, config_cls: type[PeftConfig], tuner_cls: type[BaseTuner], model_cls: type[PeftModel]) -> None:
    """Registers a PEFT method; calling it again with the same classes does nothing.

    Args:
        name: in lower case.
        config_cls: its configuration, whose `task_type` is `TASK_TYPE`.
        tuner_cls: what is put around the base model.
        model_cls: what `get_peft_model` and `PeftModel.from_pretrained` return.

    Raises:
        RuntimeError: another package has registered a method of that name.
    """
    holder = PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type(name.upper()))
    if holder is config_cls:
        return
    if holder is not None:
        raise RuntimeError(
            f"The PEFT method `{name}` is already registered by `{holder.__module__}.{holder.__qualname__}`. "
            "Import only one of the two packages."
        )
    register_peft_method(name=name, config_cls=config_cls, model_cls=tuner_cls, prefix=tuner_cls.prefix)
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING[TASK_TYPE] = model_cls
