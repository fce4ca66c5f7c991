"""Does an adapter fit the base model?"""

from __future__ import annotations

from .config import JSCPTConfig
from .start import Sizes


def check_base_model(config: JSCPTConfig, sizes: Sizes) -> None:
    """Records the sizes of the base model, or compares them with those the adapter was made for.

    Raises:
        ValueError: they differ, or the base model has fewer blocks than `prompt_depth`.
    """
    dimensions = {
        "vision_width": sizes.widths["vision"],
        "vision_blocks": sizes.blocks["vision"],
        "text_width": sizes.widths["text"],
        "text_blocks": sizes.blocks["text"],
        "projection": sizes.projection,
        "vocabulary": sizes.vocabulary,
    }
    if config.base_dimensions is None:
        config.base_dimensions = dimensions
    differing = {k: (v, dimensions.get(k)) for k, v in config.base_dimensions.items() if v != dimensions.get(k)}
    if differing:
        detail = ", ".join(f"{name} {made} (this base: {here})" for name, (made, here) in differing.items())
        raise ValueError(
            f"The adapter was made for another base model: {detail}. Load it on "
            f"`{config.base_model_name_or_path}`, the base model it was trained on (`base_dimensions`)."
        )
    blocks = min(sizes.blocks[tower] for tower in config.prompted_towers or ("vision", "text"))
    if config.prompt_depth is not None and config.prompt_depth > blocks:
        raise ValueError(
            f"`prompt_depth` is {config.prompt_depth}, but the base model's prompted towers have {blocks} blocks: use "
            f"at most {blocks}, or None for every block."
        )
