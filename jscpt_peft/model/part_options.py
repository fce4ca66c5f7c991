"""Options that some prompt sources or heads know and others do not."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

from jscpt_peft.methods import METHODS

from .heads import FEATURE_HEADS
from .prompts import PROMPT_SOURCES

# Option -> the field that chooses the part, and the parts that know the option.
KNOWN_BY = {
    "num_confounders": ("intervention", ("decoupled",)),
    "num_modules": ("intervention", ("modular",)),
    "reconstruction_weight": ("intervention", ("decoupled",)),
    "decorrelation_weight": ("intervention", ("decoupled", "modular")),
    "sparsity_weight": ("intervention", ("modular",)),
    "entropy_weight": ("intervention", ("modular",)),
    "invariance_weight": ("intervention", ("modular",)),
    "projection_rank": ("prompts", ("projected",)),
    "prompt_init": ("prompts", ("concatenated", "coupled", "projected", "tree")),
    "vision_init": ("prompts", ("concatenated", "projected", "unified")),
}
# The same, of options that adapters are saved with which do not know them: a warning says so.
ONLY_SAID = {
    "intervention_hidden": ("intervention", ("mask_mlp", "decoupled")),
    "intervention_shared": ("intervention", ("mask_mlp",)),
    "learn_masks": ("intervention", ("mask_mlp",)),
}
# Parts of one's own that are added later may know anything.
OURS = {"intervention": tuple(FEATURE_HEADS), "prompts": tuple(PROMPT_SOURCES)}


def check_part_options(config: Any) -> None:
    """Raises a `ValueError` that names who knows an option where the parts of a `JSCPTConfig` do not."""
    defaults = {each.name: each.default for each in fields(config)}
    for option, (part, knowing) in {**KNOWN_BY, **ONLY_SAID}.items():
        value, chosen = getattr(config, option), getattr(config, part)
        if value != defaults[option] and chosen in OURS[part] and chosen not in knowing:
            methods = [name for name, method in METHODS.items() if method.structure.get(part) in knowing]
            message = (
                f"`{option}` is {value!r}, which {part}={chosen!r} does not know: leave it out, or choose "
                f"{' or '.join(f'{part}={each!r}' for each in knowing)} (methods {', '.join(map(repr, methods))})."
            )
            if option not in ONLY_SAID:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)
    unused = {"prompt_depth": not config.num_tokens, "vision_init": "vision" not in config.prompted_towers}
    for option, without_effect in unused.items():
        if without_effect and getattr(config, option) != defaults[option]:
            raise ValueError(
                f"`{option}` is {getattr(config, option)!r}, but there are no prompts that it is for "
                f"(`towers` {config.towers!r}, {config.num_tokens} tokens per task): leave it out."
            )
