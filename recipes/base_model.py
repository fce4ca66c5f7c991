"""The base model and its image processor, whole or refused: of much of this transformers only warns."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Annotated, Any

from model_arguments import base_source
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from jscpt_peft.data.transforms import check_statistics
from jscpt_peft.model.adapter_file import unsound
from jscpt_peft.reading import one_line, read_json_object
from jscpt_peft.serving.base_names import is_hub_id
from jscpt_peft.settings import Between, check_setting

REMEDY = "give the folder, or the name on the Hub, of a whole `CLIPModel`."
SIDE = Annotated[int, Between(1, 8192)]
# Far above any CLIP: a config.json beyond it would only fill the memory.
SIZES = {
    "hidden_size": Annotated[int, Between(1, 65_536)],
    "intermediate_size": Annotated[int, Between(1, 262_144)],
    "num_hidden_layers": Annotated[int, Between(1, 1000)],
    "num_attention_heads": Annotated[int, Between(1, 65_536)],
    "vocab_size": Annotated[int, Between(1, 10_000_000)],
    "max_position_embeddings": Annotated[int, Between(1, 65_536)],
    "image_size": SIDE,
    "patch_size": SIDE,
}


def load_clip(source: str, option: str = "`model_name_or_path`") -> CLIPModel:
    """The `CLIPModel` in a folder or on the Hub, in float32; `option` is what named it, for messages.

    Raises:
        ValueError: there is none, it is another model, or tensors are missing, left over, misshaped or not finite.
    """
    named = f"{option} {source!r}"
    if not (os.path.exists(source) or is_hub_id(source)):
        raise ValueError(f"{named} is neither a folder nor a name on the Hub: {REMEDY}")
    try:
        _check_config(source)
        clip, found = CLIPModel.from_pretrained(source, dtype="float32", output_loading_info=True)
    except Exception as error:  # of transformers, safetensors, torch and the Hub, of as many kinds
        raise ValueError(f"{named} cannot be loaded ({one_line(error)}): {REMEDY}") from error
    kinds = {"missing_keys": "lacks", "mismatched_keys": "has another shape of", "unexpected_keys": "has no place for"}
    for kind, words in kinds.items():
        if keys := sorted(each if isinstance(each, str) else each[0] for each in found[kind]):
            more = f" and {len(keys) - 1} tensors more" if len(keys) > 1 else ""
            raise ValueError(f"{named} is not whole: the model {words} {keys[0]!r}{more}: {REMEDY}")
    for name, tensor in clip.state_dict().items():
        if problem := unsound(tensor):
            raise ValueError(f"{named} is damaged: {name!r} {problem}: {REMEDY}")
    return clip


def load_base(name: str | None) -> tuple[str, CLIPModel, CLIPImageProcessorPil]:
    """Where `model_name_or_path` is, the model and its image processor; errors as of the two functions for these."""
    source = base_source(name)
    clip = load_clip(source)
    return source, clip, load_processor(source, clip)


def _check_config(source: str) -> None:
    _check_files(source, "config.json")
    config, _ = CLIPConfig.get_config_dict(source)
    if config.get("model_type") != CLIPConfig.model_type:
        raise ValueError(f"its `model_type` is {config.get('model_type')!r}, not 'clip'")
    for tower in ("text_config", "vision_config"):
        given = config.get(tower) or {}
        check_setting(tower, given, dict)
        for name, annotation in SIZES.items():
            if name in given:
                check_setting(f"{tower}[{name!r}]", given[name], annotation)


def _check_files(source: str, *names: str) -> None:
    """Reads JSON files of a folder, which transformers takes with keys that come twice, and otherwise as they come."""
    for path in (os.path.join(source, name) for name in names):
        if os.path.isfile(path):
            read_json_object(path)


def load_processor(source: str, clip: CLIPModel, option: str = "`model_name_or_path`") -> CLIPImageProcessorPil:
    """The image processor beside a base model, for images of the size that the model takes; arguments as above.

    Raises:
        ValueError: there is none, or it says something else than sides, means and standard deviations.
    """
    named = f"the image processor of {option} {source!r}"
    try:
        _check_files(source, "preprocessor_config.json", "processor_config.json")
        processor = CLIPImageProcessorPil.from_pretrained(source)
        check_statistics(processor.image_mean, processor.image_std)
        side = _side(processor.crop_size)
    except Exception as error:  # as above
        raise ValueError(
            f"{named} cannot be loaded ({one_line(error)}): put CLIP's preprocessor_config.json there."
        ) from error
    expected = clip.config.vision_config.image_size
    if side != expected:
        raise ValueError(f"{named} makes images of {side} pixels, the model takes {expected}: mend its `crop_size`.")
    return processor


def _side(crop_size: Mapping[str, Any]) -> int:
    if crop_size["height"] != crop_size["width"]:
        raise ValueError(f"`crop_size` is {dict(crop_size)}, no square")
    check_setting("crop_size", crop_size["height"], SIDE)
    return crop_size["height"]
