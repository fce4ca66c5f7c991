"""Base models, one file per architecture; `BACKBONES` lists them."""

from transformers import PreTrainedModel

from .base import Backbone
from .clip import CLIPBackbone

BACKBONES: list[type[Backbone]] = [CLIPBackbone]
"""A backbone of one's own is added here before it is used."""


def backbone_for(model: PreTrainedModel) -> Backbone:
    """The backbone of a base model.

    Raises:
        ValueError: there is none for models of its class.
    """
    for backbone in BACKBONES:
        if isinstance(model, backbone.model_class):
            return backbone(model)
    known = ", ".join(f"`{backbone.model_class.__name__}`" for backbone in BACKBONES)
    raise ValueError(f"JSCPT adapts a transformers {known}, got a `{type(model).__name__}`.")


__all__ = ["BACKBONES", "Backbone", "CLIPBackbone", "backbone_for"]
