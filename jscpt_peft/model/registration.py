"""Registers JSCPT with PEFT: the only file that touches PEFT's private state.

PEFT keeps its methods in the enum `PeftType`, which has no public way to grow. `add_peft_type` adds a member as the
enum machinery itself would; `register` then uses PEFT's own `register_peft_method`.
"""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


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


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Registers a PEFT method under `name` (lower case); calling it again with the same classes does nothing.

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
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
